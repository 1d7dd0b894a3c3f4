//! The picture that the user is shown: the decoded pixels that the model's own preprocessing starts from.

use super::Picture;
use super::decode::zeros;
use crate::Result;
use llama3med_arithmetic::pixels::mean_of_blocks;

/// A picture for the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Red, green, blue and full opacity for each pixel: (height, width, 4).
    pub rgba: Vec<u8>,
}

impl Picture {
    /// The picture for the screen. If an edge is longer than `longest`, each pixel is the mean of a block of pixels.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub fn view(&self, longest: usize) -> Result<View> {
        let factor = self.width.max(self.height).div_ceil(longest);
        let [width, height] = [self.width, self.height].map(|n| n.div_ceil(factor));
        let mut rgba: Vec<u8> = zeros((width * height) as u64 * 4)?;
        let mut sums: Vec<[u32; 3]> = zeros(width as u64)?;
        let rows = self.rgb.chunks(3 * self.width * factor).zip(rgba.chunks_exact_mut(4 * width));
        rows.for_each(|(rows, out)| mean_of_blocks(rows, self.width, factor, &mut sums, out.as_chunks_mut().0));
        Ok(View { width, height, rgba })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_picture_is_shown_as_it_is() {
        let view = Picture::new(2, 1, vec![1, 2, 3, 4, 5, 6]).view(2).expect("memory");
        assert_eq!((view.width, view.height), (2, 1));
        assert_eq!(view.rgba, [1, 2, 3, 255, 4, 5, 6, 255]);
    }

    #[test]
    fn a_large_one_keeps_its_proportions_and_its_mean() {
        let rgb = (0..40 * 30).flat_map(|at| [(at % 40 * 5) as u8, 100, 7]).collect();
        let view = Picture::new(40, 30, rgb).view(10).expect("memory");
        assert_eq!((view.width, view.height, view.rgba.len()), (10, 8, 320));
        let reds = view.rgba.iter().step_by(4).map(|&red| f32::from(red));
        assert!((reds.sum::<f32>() / 80.0 - 97.5).abs() < 1.0);
        assert!(view.rgba.chunks_exact(4).all(|pixel| pixel[1..] == [100, 7, 255]));
    }

    #[test]
    fn a_strip_keeps_a_row() {
        let view = Picture::new(6000, 1, vec![9; 18000]).view(100).expect("memory");
        assert_eq!((view.width, view.height), (100, 1));
        assert!(view.rgba.chunks_exact(4).all(|pixel| pixel == [9, 9, 9, 255]));
    }
}
