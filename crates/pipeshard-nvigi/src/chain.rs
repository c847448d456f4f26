//! Structs that come from hosts: chains of them, in versions that may be older or newer than ours.

use crate::abi::{result, Base, Struct, Uid};
use crate::refusal::Refusal;
use std::ffi::{c_char, CStr};
use std::marker::PhantomData;

/// Structs in a chain, with the first, at most.
pub const MOST: usize = 16;

/// A struct of a host's. Only [`field!`] reads it, which asks for the version first.
pub struct View<S> {
    at: *const S,
    version: u32,
    kind: PhantomData<S>,
}

impl<S> Clone for View<S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for View<S> {}

impl<S: Struct> View<S> {
    /// The struct at `at` itself, if it is one.
    ///
    /// # Safety
    /// Null, or a struct that begins with [`Base`] and has the fields of its version.
    pub unsafe fn of(at: *const S) -> Option<Self> {
        let base = at.cast::<Base>().as_ref()?;
        (base.uid == S::UID).then_some(View {
            at,
            version: base.version,
            kind: PhantomData,
        })
    }

    /// The first one in a chain.
    ///
    /// # Safety
    /// `first` is null or a chain of structs as for [`View::of`].
    pub unsafe fn find(first: *const Base) -> Option<Self> {
        let mut at = first;
        for _ in 0..MOST {
            let base = at.as_ref()?;
            if base.uid == S::UID {
                return Self::of(at.cast());
            }
            at = base.next;
        }
        None
    }

    pub fn version(self) -> u32 {
        self.version
    }

    pub fn at(self) -> *const S {
        self.at
    }
}

/// A field of a struct that may be missing or older: the default then.
macro_rules! field {
    ($view:expr, $kind:ident . $field:ident, $since:literal, $default:expr) => {
        match $view {
            Some(view) if view.version() >= $since => {
                let at: *const $kind = view.at();
                // SAFETY: structs have the fields of their version (`View::of`).
                unsafe { (&raw const (*at).$field).read() }
            }
            _ => $default,
        }
    };
}
pub(crate) use field;

/// Whether a chain has a struct of this kind.
///
/// # Safety
/// As for [`View::find`].
pub unsafe fn length(first: *const Base) -> usize {
    let (mut at, mut count) = (first, 0);
    while let Some(base) = at.as_ref().filter(|_| count <= MOST) {
        (at, count) = (base.next, count + 1);
    }
    count
}

/// Refuses chains that are longer than a chain may be: what lies behind would be overlooked.
///
/// # Safety
/// As for [`View::find`].
pub unsafe fn check(first: *const Base, what: &str) -> Result<(), Refusal> {
    match length(first) > MOST {
        true => Err(Refusal::new(
            result::INVALID_PARAMETER,
            format!("{what}: more than {MOST} structs are chained"),
        )),
        false => Ok(()),
    }
}

/// A text that may be left out, as null or empty.
///
/// # Safety
/// Null, or ends with a zero byte.
pub unsafe fn text(at: *const c_char, name: &str) -> Result<Option<String>, Refusal> {
    if at.is_null() {
        return Ok(None);
    }
    let text = CStr::from_ptr(at).to_str().map_err(|_| {
        Refusal::new(
            result::INVALID_PARAMETER,
            format!("{name} is not UTF-8: pass paths and texts in UTF-8"),
        )
    })?;
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

/// Reports whether a struct of a host's says that it is of this kind.
///
/// # Safety
/// Null, or a struct.
pub unsafe fn is(at: *const Base, uid: Uid) -> bool {
    at.as_ref().is_some_and(|base| base.uid == uid)
}
