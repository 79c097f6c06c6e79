//! The last thing that happens to what is shown: nothing in it steers the terminal, reorders a line or hides, wherever it
//! came from. Colour and line feeds stay.

use strongroom_contracts::visible::{is_hidden, visible};

/// Text for people. Escape sequences that set colour (`ESC [ … m`, ECMA-48 8.3.117) are ours.
pub fn calm(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| is_hidden(c) && c != '\n') {
        let (plain, found) = rest.split_at(at);
        out.push_str(plain);
        let length =
            colour(found).unwrap_or_else(|| found.chars().next().map_or(found.len(), char::len_utf8));
        let (hidden, after) = found.split_at(length);
        if length > 1 && hidden.starts_with("\x1b[") {
            out.push_str(hidden);
        } else {
            out.push_str(&visible(hidden));
        }
        rest = after;
    }
    out + rest
}

/// The length of the colour sequence that the text begins with.
fn colour(text: &str) -> Option<usize> {
    let codes = text.strip_prefix("\x1b[")?;
    let end = codes.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    codes[end..].starts_with('m').then_some("\x1b[".len() + end + 1)
}

/// JSON for programs, which may end up on a terminal all the same: hidden characters as `\uXXXX` (RFC 8259, section 7).
/// They occur inside strings only, but for line feeds.
pub fn calm_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) && c != '\n' {
            let mut units = [0; 2];
            c.encode_utf16(&mut units).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_and_lines_stay_and_nothing_else_gets_through() {
        assert_eq!(calm("\x1b[1;32mvalid\x1b[0m\n"), "\x1b[1;32mvalid\x1b[0m\n");
        assert_eq!(calm("a\x1b[2Jb\x1b]0;title\x07c\x1b["), "a\\u{1b}[2Jb\\u{1b}]0;title\\u{7}c\\u{1b}[");
        assert_eq!(calm("lia\u{202e}moc\r\n"), "lia\\u{202e}moc\\r\n");
        assert_eq!(calm("\u{e0041}"), "\\u{e0041}");
    }

    #[test]
    fn json_says_the_same_without_hidden_characters() {
        let value = serde_json::json!({ "path": "a\u{202e}b\u{7f}\u{e0041}", "n": [1, 2] });
        let text = calm_json(&format!("{value:#}\n"));
        assert!(!text.chars().any(|c| is_hidden(c) && c != '\n'), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
