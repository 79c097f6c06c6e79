//! Aligned tables.

use super::Style;
use super::calm::calm;

/// A table under construction. Cells may hold colour; it does not count for their width.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a head.
    pub fn new(style: Style, head: &[&str]) -> Table {
        Table { rows: vec![head.iter().map(|title| style.bold(title)).collect()] }
    }

    /// A table of names and values, without a head.
    pub fn bare() -> Table {
        Table { rows: vec![] }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.iter().map(|cell| calm(cell)).collect());
    }

    /// The text; the last column is not padded.
    pub fn render(&self, indent: &str) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| shown(cell)).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = indent.to_owned();
            for (n, cell) in row.iter().enumerate() {
                line.push_str(cell);
                if n + 1 < row.len() {
                    let free = widths.get(n).copied().unwrap_or(0).saturating_sub(shown(cell)) + 2;
                    line.extend(std::iter::repeat_n(' ', free));
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// Characters of a cell without its colour.
fn shown(cell: &str) -> usize {
    let mut count = 0;
    let mut chars = cell.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            chars.by_ref().find(|c| *c == 'm');
        } else {
            count += 1;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_the_colour() {
        let mut table = Table::new(Style::PLAIN, &["APP", "STATE", "END"]);
        table.row(["mail".into(), "\x1b[32mvalid\x1b[0m".into(), "soon".into()]);
        table.row(["öffice".into(), "x".into(), "".into()]);
        let text = table.render("");
        let at = |line: &str, what: &str| {
            let bare = line.replace("\x1b[32m", "").replace("\x1b[0m", "");
            bare.find(what).map(|byte| bare[..byte].chars().count())
        };
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(at(lines[0], "END"), at(lines[1], "soon"));
        assert_eq!(at(lines[0], "STATE"), at(lines[2], "x"));
        assert!(lines.iter().all(|line| !line.ends_with(' ')));
    }
}
