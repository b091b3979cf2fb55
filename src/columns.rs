//! Rows of numbers in as few bytes as they need.
//!
//! Numbers that are kept together are near each other: times of one second, places in one file. So a column is its
//! least number, and of each row how much more it has, in as many bytes as the most of them takes: none at all where
//! all are alike. Any row is read by itself.

/// Rows of `N` numbers each, which do not change.
#[derive(Debug)]
pub struct Columns<const N: usize> {
    least: [u64; N],
    /// Bytes of a number in each column.
    widths: [u8; N],
    /// Bytes of a row.
    stride: u16,
    /// The rows, and behind them [`MARGIN`] bytes, so that each number can be read as eight.
    bytes: Box<[u8]>,
}

const MARGIN: usize = 8;

impl<const N: usize> Columns<N> {
    /// These rows, in their order.
    pub fn new(rows: &[[u64; N]]) -> Columns<N> {
        let (mut least, mut most) = (rows.first().copied().unwrap_or([0; N]), [0; N]);
        for row in rows {
            for column in 0..N {
                least[column] = least[column].min(row[column]);
                most[column] = most[column].max(row[column]);
            }
        }
        let widths: [u8; N] = std::array::from_fn(|column| {
            let span: u64 = most[column].saturating_sub(least[column]);
            (u64::BITS - span.leading_zeros()).div_ceil(8) as u8
        });
        let stride = widths.iter().map(|width| u16::from(*width)).sum();
        let mut bytes = Vec::with_capacity(rows.len() * usize::from(stride) + MARGIN);
        for row in rows {
            for column in 0..N {
                let more = (row[column] - least[column]).to_le_bytes();
                bytes.extend_from_slice(&more[..usize::from(widths[column])]);
            }
        }
        bytes.extend_from_slice(&[0; MARGIN]);
        Columns { least, widths, stride, bytes: bytes.into() }
    }

    /// The bytes of the rows.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The row with this number, counted from 0.
    ///
    /// # Panics
    /// If there is none.
    pub fn row(&self, nth: usize) -> [u64; N] {
        let mut at = nth * usize::from(self.stride);
        std::array::from_fn(|column| {
            let number = self.number(at, column);
            at += usize::from(self.widths[column]);
            number
        })
    }

    /// One number of a row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn cell(&self, nth: usize, column: usize) -> u64 {
        let before: u16 = self.widths[..column].iter().map(|width| u16::from(*width)).sum();
        self.number(nth * usize::from(self.stride) + usize::from(before), column)
    }

    #[inline]
    fn number(&self, at: usize, column: usize) -> u64 {
        let word = self.bytes[at..].first_chunk().expect("the margin is behind the last row");
        // Of no bytes nothing is left, of eight everything.
        let mask = u64::MAX.checked_shr(u64::BITS - 8 * u32::from(self.widths[column])).unwrap_or(0);
        self.least[column] + (u64::from_le_bytes(*word) & mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::tests::random;

    #[test]
    fn what_goes_in_comes_out() {
        let mut state = 88_172_645_463_325_252_u64;
        let mut draw = || random(&mut state);
        for case in 0..200 {
            // Columns of all widths, from no byte to eight, at either end of what a number can be.
            let rows: Vec<[u64; 4]> = (0..case % 50)
                .map(|_| {
                    [
                        draw() >> (case % 64),
                        u64::MAX - (draw() >> (case * 7 % 64)),
                        case,
                        1 << 40 | draw() & 0xff,
                    ]
                })
                .collect();
            let columns = Columns::new(&rows);
            for (nth, row) in rows.iter().enumerate() {
                assert_eq!(columns.row(nth), *row);
                assert_eq!(std::array::from_fn(|column| columns.cell(nth, column)), *row);
            }
        }
        let ends = [[0, 7], [u64::MAX, 7]];
        assert_eq!([0, 1].map(|nth| Columns::new(&ends).row(nth)), ends);
    }

    #[test]
    fn a_number_takes_the_bytes_in_which_it_differs() {
        let near: Vec<[u64; 3]> = (0..100).map(|n| [1 << 60 | n, 5, 1 << 50 | n << 8]).collect();
        assert_eq!(Columns::new(&near).bytes.len(), 100 * 3 + MARGIN);
        assert_eq!(Columns::new(&[[3; 3]; 100]).bytes.len(), MARGIN);
    }
}
