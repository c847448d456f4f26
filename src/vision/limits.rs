//! To which size images are scaled that keep their shape, in the precision of llama.cpp.

/// Limits of images that keep their shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Both sides are multiples of this number of pixels.
    pub align: u64,
    /// Pixels of the smallest image.
    pub least: u64,
    /// Pixels of the largest image.
    pub most: u64,
}

/// The multiple of `align` that is nearest to `pixels`, in the precision of llama.cpp.
fn multiple(pixels: f32, align: u64, towards: fn(f32) -> f32) -> u64 {
    let parts = towards(pixels / align as f32);
    // what is negative or no number becomes zero
    parts as u64 * align
}

impl Limits {
    /// The size to which an image of `width` by `height` pixels is scaled: of about its shape, within the limits.
    pub fn scaled(&self, width: u64, height: u64) -> (u64, u64) {
        let (w, h) = (width as f32, height as f32);
        let nearest = |side| multiple(side, self.align, f32::round).max(self.align);
        let (wide, high) = (nearest(w), nearest(h));
        let area = wide.saturating_mul(high);
        if area > self.most {
            let by = (h * w / self.most as f32).sqrt();
            let smaller = |side: f32| multiple(side / by, self.align, f32::floor).max(self.align);
            (smaller(w), smaller(h))
        } else if area < self.least {
            let by = (self.least as f32 / (h * w)).sqrt();
            let larger = |side: f32| multiple(side * by, self.align, f32::ceil);
            (larger(w), larger(h))
        } else {
            (wide, high)
        }
    }
}
