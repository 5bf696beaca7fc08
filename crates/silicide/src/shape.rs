//! Dimensions, kept inline so that making a view allocates nothing.

use std::fmt;
use std::ops::Deref;

/// The most dimensions a tensor has.
pub const MAX_RANK: usize = 8;

/// A list of at most [`MAX_RANK`] numbers: a tensor's dimensions, or its strides.
///
/// ```
/// use silicide::Shape;
/// let s = Shape::from([2, 3, 4]);
/// assert_eq!(s.elements(), 24);
/// assert_eq!(&s.contiguous_strides()[..], [12, 4, 1]);
/// assert_eq!(s.to_string(), "[2, 3, 4]");
/// ```
#[derive(Clone, Copy, Default)]
pub struct Shape {
    rank: u8,
    dims: [usize; MAX_RANK],
}

impl Shape {
    /// A shape with these dimensions, or `None` for more than [`MAX_RANK`].
    pub fn new(dims: &[usize]) -> Option<Shape> {
        let mut s = Shape::default();
        s.dims.get_mut(..dims.len())?.copy_from_slice(dims);
        s.rank = dims.len() as u8;
        Some(s)
    }

    /// The product of the dimensions; 1 for a scalar. Shapes of tensors never overflow: they were checked when made.
    pub fn elements(&self) -> usize {
        self.iter().product()
    }

    /// The product of the dimensions, or `None` where it overflows. A zero does not excuse the others, of which
    /// [`contiguous_strides`](Self::contiguous_strides) are made.
    pub fn checked_elements(&self) -> Option<usize> {
        let product = self.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)))?;
        Some(if self.contains(&0) { 0 } else { product })
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.rank as usize
    }

    /// The strides, in elements, of a row-major tensor of this shape.
    pub fn contiguous_strides(&self) -> Shape {
        let mut strides = *self;
        let mut next = 1;
        for i in (0..self.rank()).rev() {
            strides.dims[i] = next;
            next *= self.dims[i].max(1);
        }
        strides
    }
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.dims[..self.rank as usize]
    }
}

impl std::ops::DerefMut for Shape {
    fn deref_mut(&mut self) -> &mut [usize] {
        &mut self.dims[..self.rank as usize]
    }
}

impl PartialEq for Shape {
    fn eq(&self, other: &Shape) -> bool {
        **self == **other
    }
}

impl Eq for Shape {}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Shape {
        const { assert!(N <= MAX_RANK) }
        let mut s = Shape { rank: N as u8, ..Shape::default() };
        s.dims[..N].copy_from_slice(&dims);
        s
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}
