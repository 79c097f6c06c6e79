//! CRC-32C (Castagnoli, RFC 3720 B.4), eight bytes at a step: tells a record that was cut off from a whole one.

const POLYNOMIAL: u32 = 0x82F6_3B78;

const TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0u32; 256]; 8];
    let mut n = 0;
    while n < 256 {
        let mut crc = n as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        tables[0][n] = crc;
        n += 1;
    }
    let mut level = 1;
    while level < 8 {
        let mut n = 0;
        while n < 256 {
            let before = tables[level - 1][n];
            tables[level][n] = before >> 8 ^ tables[0][(before & 0xff) as usize];
            n += 1;
        }
        level += 1;
    }
    tables
}

/// The checksum of some bytes.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    let (eights, rest) = bytes.as_chunks::<8>();
    for [a, b, c, d, e, f, g, h] in eights {
        let low = u32::from_le_bytes([*a, *b, *c, *d]) ^ crc;
        let [l0, l1, l2, l3] = low.to_le_bytes();
        crc = TABLES[7][usize::from(l0)]
            ^ TABLES[6][usize::from(l1)]
            ^ TABLES[5][usize::from(l2)]
            ^ TABLES[4][usize::from(l3)]
            ^ TABLES[3][usize::from(*e)]
            ^ TABLES[2][usize::from(*f)]
            ^ TABLES[1][usize::from(*g)]
            ^ TABLES[0][usize::from(*h)];
    }
    for byte in rest {
        crc = crc >> 8 ^ TABLES[0][usize::from(crc.to_le_bytes()[0] ^ byte)];
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::crc32c;

    #[test]
    fn known_values() {
        // RFC 3720, B.4; and the check value of the catalogue of CRCs.
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xff; 32]), 0x62A8_AB43);
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }
}
