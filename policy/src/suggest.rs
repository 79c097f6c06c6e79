//! "Did you mean ...?": the closest of the words that would have been right.

/// The candidate closest to `word`, if one is close enough to be meant.
///
/// Distance is the number of letters inserted, removed, replaced or swapped with a neighbour (Damerau and Levenshtein,
/// optimal string alignment).
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(64).flat_map(char::to_lowercase).collect();
    let most = match word.len() {
        0 => return None,
        1..=3 => 1,
        4..=7 => 2,
        _ => 3,
    };
    let scored = candidates.into_iter().map(|candidate| (distance(&word, candidate), candidate));
    scored.filter(|(distance, _)| *distance <= most).min_by_key(|(distance, _)| *distance).map(|(_, one)| one)
}

/// The sentence that suggests the closest candidate.
pub(crate) fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    closest(word, candidates).map(|one| format!("did you mean `{one}`?"))
}

fn distance(a: &[char], b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let width = b.len() + 1;
    // Rows of the table: row i holds the distances of the first i letters of `a` to each prefix of `b`.
    let mut rows: Vec<Vec<usize>> = vec![(0..width).collect()];
    for (i, from) in a.iter().enumerate() {
        let above = &rows[i];
        let mut row = vec![i + 1];
        for (j, to) in b.iter().enumerate() {
            let mut best = (above[j] + usize::from(from != to)).min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *from == b[j - 1] && a[i - 1] == *to {
                best = best.min(rows[i - 1][j - 1] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_words_are_found_and_far_ones_are_not() {
        let rights = ["list", "read", "create", "append", "write", "delete", "attr"];
        for (word, meant) in [
            ("apend", Some("append")),
            ("raed", Some("read")),
            ("Write", Some("write")),
            ("lsit", Some("list")),
            ("deletes", Some("delete")),
            ("execute", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(closest(word, rights), meant, "{word}");
        }
        assert_eq!(closest("append-olny", ["read-only", "append-only"]), Some("append-only"));
        assert_eq!(closest(&"a".repeat(100_000), rights), None);
    }
}
