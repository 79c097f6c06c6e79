//! What a piece of a file looks like: text, something with a known beginning, compressed, or like chance.
//!
//! Encrypted bytes are spread evenly over all values. Pearson's chi-squared statistic against an even spread tells that from
//! everything that people keep in files, on samples as small as a quarter of a KiB; Shannon's entropy, which is usual for
//! this, needs many KiB before ciphertext and a JPEG differ. (The measure is that of `ent` by John Walker; that
//! overwriting with even bytes gives ransomware away is from ShieldFS, ACSAC 2016, and UNVEIL, USENIX Security 2016.)

/// The most bytes that are looked at.
pub(crate) const SAMPLE: usize = 4096;
/// Below this a sample is too short for statistics.
const ENOUGH: usize = 256;
/// Even bytes have 255 ± 23; deflate and JPEG data lie above this nearly always.
const EVEN: f64 = 340.0;

/// What bytes look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Look {
    /// Too few to say.
    Short,
    /// Words, numbers, markup.
    Text,
    /// A beginning that belongs to a format, by its number in [`FORMATS`].
    Format(u8),
    /// Anything with structure.
    Structured,
    /// Spread as evenly as chance or a cipher would.
    Even,
}

/// Beginnings of common formats; `packed`: what follows is compressed, and may look even.
struct Format {
    magic: &'static [u8],
    packed: bool,
    /// Made anew by programs whenever needed, so its loss is no damage.
    made: bool,
}

const fn format(magic: &'static [u8], packed: bool) -> Format {
    Format { magic, packed, made: false }
}

const fn made(magic: &'static [u8]) -> Format {
    Format { magic, packed: true, made: true }
}

const FORMATS: [Format; 27] = [
    format(b"%PDF-", true),
    format(b"PK\x03\x04", true),
    format(b"\xff\xd8\xff", true),
    format(b"\x89PNG\r\n\x1a\n", true),
    format(b"GIF8", true),
    format(b"RIFF", true),
    format(b"OggS", true),
    format(b"fLaC", true),
    format(b"ID3", true),
    format(b"\x1a\x45\xdf\xa3", true),
    format(b"\0\0\0\x18ftyp", true),
    format(b"\0\0\0\x1cftyp", true),
    format(b"\0\0\0\x20ftyp", true),
    format(b"\x1f\x8b", true),
    format(b"BZh", true),
    format(b"\xfd7zXZ\0", true),
    format(b"\x28\xb5\x2f\xfd", true),
    format(b"7z\xbc\xaf\x27\x1c", true),
    format(b"Rar!\x1a\x07", true),
    format(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", false),
    format(b"SQLite format 3\0", false),
    format(b"II*\0", true),
    // Object files, archives of them, and git's own files.
    made(b"\x7fELF"),
    made(b"!<arch>\n"),
    made(b"PACK\0\0\0"),
    made(b"\x78\x01"),
    made(b"\xfftOc"),
];

impl Look {
    /// Looks at the beginning of a file (`start`), or at a piece from its middle.
    pub(crate) fn at(bytes: &[u8], start: bool) -> Look {
        let bytes = bytes.get(..SAMPLE).unwrap_or(bytes);
        if start && let Some(number) = FORMATS.iter().position(|format| bytes.starts_with(format.magic)) {
            // Fewer than 256.
            return Look::Format(number as u8);
        }
        let text = bytes.iter().filter(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7e)).count();
        if bytes.len() < ENOUGH {
            return match bytes.len() {
                // Chance has text bytes for 38 in 100.
                length if length >= 32 && text * 10 < length * 6 && chance_like(bytes) => Look::Even,
                length if length >= 16 && text * 10 >= length * 9 => Look::Text,
                _ => Look::Short,
            };
        }
        if chi_squared(bytes) < EVEN {
            return Look::Even;
        }
        // UTF-8 of other scripts has its bytes above the ASCII ones.
        let valid = std::str::from_utf8(bytes).map_or_else(|error| error.valid_up_to(), str::len);
        let words =
            bytes.iter().filter(|byte| **byte < 0x20 && !matches!(byte, b'\t' | b'\n' | b'\r')).count();
        if valid + 4 >= bytes.len() && words == 0 { Look::Text } else { Look::Structured }
    }

    /// Whether a person would miss it.
    pub(crate) fn matters(self) -> bool {
        match self {
            Look::Text | Look::Structured => true,
            Look::Format(number) => FORMATS.get(usize::from(number)).is_some_and(|format| !format.made),
            Look::Short | Look::Even => false,
        }
    }

    /// Whether it is of a format whose contents are compressed.
    pub(crate) fn is_packed(self) -> bool {
        match self {
            Look::Format(number) => FORMATS.get(usize::from(number)).is_some_and(|format| format.packed),
            _ => false,
        }
    }
}

/// Pearson's statistic of the bytes' values against an even spread.
fn chi_squared(bytes: &[u8]) -> f64 {
    let mut counts = [0_u32; 256];
    for byte in bytes {
        counts[usize::from(*byte)] += 1;
    }
    let expected = bytes.len() as f64 / 256.0;
    let squares: f64 = counts.iter().map(|count| f64::from(*count).powi(2)).sum();
    squares / expected - bytes.len() as f64
}

/// For short samples: few values come twice, and the zero byte is as rare as any.
fn chance_like(bytes: &[u8]) -> bool {
    let mut seen = [0_u8; 256];
    for byte in bytes {
        let count = &mut seen[usize::from(*byte)];
        *count = count.saturating_add(1);
    }
    let most = seen.iter().copied().max().unwrap_or(0);
    usize::from(most) <= 2 + bytes.len() / 32
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    /// Even bytes, always the same (xorshift64*, Vigna 2016).
    fn even(length: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        (0..length)
            .map(|_| {
                state ^= state >> 12;
                state ^= state << 25;
                state ^= state >> 27;
                (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8
            })
            .collect()
    }

    #[test]
    fn even_bytes_are_told_from_everything_else_at_every_length() {
        for length in [256, 512, 1000, 4096] {
            let found =
                (1..400).filter(|seed| Look::at(&even(length, *seed * 77), false) == Look::Even).count();
            assert!(found >= 395, "{found} of 399 at {length}");
        }
        for length in [32, 48, 100, 200] {
            let found =
                (1..400).filter(|seed| Look::at(&even(length, *seed * 77), false) == Look::Even).count();
            assert!(found >= 370, "{found} of 399 at {length}");
        }
        let text = "The quick brown fox jumps over the lazy dog. ".repeat(100);
        for length in [16, 100, 300, 4096] {
            assert_eq!(Look::at(&text.as_bytes()[..length], true), Look::Text);
        }
        let cyrillic = "Съешь же ещё этих мягких французских булок. ".repeat(50);
        assert_eq!(Look::at(cyrillic.as_bytes(), true), Look::Text);
        let table: Vec<u8> = (0..4096_u32).flat_map(|n| (n * n).to_le_bytes()).collect();
        assert_eq!(Look::at(&table, true), Look::Structured);
        assert_eq!(Look::at(&[0; 4096], true), Look::Structured);
        assert_eq!(Look::at(b"short", true), Look::Short);
    }

    #[test]
    fn formats_are_known_by_their_beginning_only() {
        let mut jpeg = even(4096, 5);
        jpeg[..4].copy_from_slice(b"\xff\xd8\xff\xe0");
        assert!(Look::at(&jpeg, true).is_packed() && Look::at(&jpeg, true).matters());
        assert_eq!(Look::at(&jpeg, false), Look::Even);
        let object = [b"\x78\x01".to_vec(), even(500, 9)].concat();
        assert!(!Look::at(&object, true).matters());
    }
}
