//! The frame: two lengths, a header, data.

/// The longest header, in bytes.
pub const MAX_HEADER: usize = 4096;
/// The most data in one frame, in bytes; the largest read or write.
pub const MAX_DATA: usize = 1 << 20;
/// Bytes of the two lengths.
pub const PREFIX: usize = 8;

/// The two lengths of a frame, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// Bytes of the header: 1 to [`MAX_HEADER`].
    pub header: usize,
    /// Bytes of data: 0 to [`MAX_DATA`].
    pub data: usize,
}

/// A frame whose lengths are out of bounds; the connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("frame of {header} header bytes and {data} data bytes is out of bounds")]
pub struct FrameError {
    header: u32,
    data: u32,
}

impl Lengths {
    /// Reads the prefix of a frame.
    ///
    /// # Errors
    /// [`FrameError`] if a length is out of bounds.
    pub fn parse(prefix: [u8; PREFIX]) -> Result<Lengths, FrameError> {
        let [a, b, c, d, e, f, g, h] = prefix;
        let (header, data) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        let lengths = Lengths { header: header as usize, data: data as usize };
        if (1..=MAX_HEADER).contains(&lengths.header) && lengths.data <= MAX_DATA {
            Ok(lengths)
        } else {
            Err(FrameError { header, data })
        }
    }

    /// The prefix of a frame. Both lengths fit in 32 bits by their bounds.
    pub fn prefix(self) -> [u8; PREFIX] {
        let mut out = [0; PREFIX];
        out[..4].copy_from_slice(&(self.header as u32).to_le_bytes());
        out[4..].copy_from_slice(&(self.data as u32).to_le_bytes());
        out
    }

    /// Bytes of the frame after the prefix.
    pub fn body(self) -> usize {
        self.header + self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_checked_before_anything_is_allocated() {
        let prefix = |h: u32, d: u32| {
            let mut out = [0; PREFIX];
            out[..4].copy_from_slice(&h.to_le_bytes());
            out[4..].copy_from_slice(&d.to_le_bytes());
            out
        };
        assert!(Lengths::parse(prefix(0, 0)).is_err());
        assert!(Lengths::parse(prefix(4097, 0)).is_err());
        assert!(Lengths::parse(prefix(1, (1 << 20) + 1)).is_err());
        assert!(Lengths::parse(prefix(u32::MAX, u32::MAX)).is_err());
        let whole = Lengths::parse(prefix(4096, 1 << 20)).unwrap();
        assert_eq!(whole.prefix(), prefix(4096, 1 << 20));
    }
}
