//! Texts on their way to the host: in structs of ours, or in a buffer of the host's.

use crate::abi::{result, Base, Context, CpuData, DataText, Slot, SlotArray, Struct};
use crate::chain::{field, View};
use crate::refusal::Refusal;
use std::ffi::{CStr, CString};

/// The key of the slot that has the answer.
pub const KEY: &CStr = c"text";

/// A text in a slot of an array.
struct Parts {
    _text: CString,
    cpu: CpuData,
    data: DataText,
    slot: Slot,
    array: SlotArray,
}

/// What a host gets as `outputs`. It stays where it is until it is dropped.
pub struct Outputs(*mut Parts);

// SAFETY: owned; hosts read it on the thread that it is handed to.
unsafe impl Send for Outputs {}

impl Drop for Outputs {
    fn drop(&mut self) {
        // SAFETY: made by `of`, freed once.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

const fn base<S: Struct>() -> Base {
    Base::new(S::UID, S::VERSION)
}

/// Structs that are never written.
struct Constant<T>(T);

// SAFETY: never written, and their pointers are to others of them.
unsafe impl<T> Sync for Constant<T> {}

/// An answer without text, which stays as long as the plug-in: a host may let go of its context as soon as it is told of the end, so
/// what it was told with can be taken neither from the context nor from memory.
static NO_BYTES: Constant<CpuData> = Constant(CpuData {
    base: base::<CpuData>(),
    buffer: c"".as_ptr().cast(),
    bytes: 1,
});
static NO_TEXT: Constant<DataText> = Constant(DataText {
    base: base::<DataText>(),
    utf8: (&raw const NO_BYTES.0).cast(),
});
static NO_SLOT: Constant<Slot> = Constant(Slot {
    base: base::<Slot>(),
    key: KEY.as_ptr(),
    data: (&raw const NO_TEXT.0).cast(),
});
static NOTHING: Constant<SlotArray> = Constant(SlotArray {
    base: base::<SlotArray>(),
    count: 1,
    items: &raw const NO_SLOT.0,
});

/// Outputs without text.
pub fn nothing() -> *const SlotArray {
    &raw const NOTHING.0
}

/// The host's own outputs in a context; null where it has none.
///
/// # Safety
/// A context of a host's.
pub unsafe fn of_host(context: *const Context) -> *const SlotArray {
    let view = View::<Context>::of(context);
    let outputs = field!(view, Context.outputs, 1, std::ptr::null());
    match outputs == nothing() {
        true => std::ptr::null(),
        false => outputs,
    }
}

impl Outputs {
    pub fn of(text: &str) -> Self {
        let text = crate::boundary::c_text(text);
        let parts = Box::into_raw(Box::new(Parts {
            cpu: CpuData {
                base: base::<CpuData>(),
                buffer: text.as_ptr().cast(),
                // with the zero, as in what NVIGI's helpers make
                bytes: text.as_bytes_with_nul().len(),
            },
            _text: text,
            data: DataText {
                base: base::<DataText>(),
                utf8: std::ptr::null(),
            },
            slot: Slot {
                base: base::<Slot>(),
                key: KEY.as_ptr(),
                data: std::ptr::null(),
            },
            array: SlotArray {
                base: base::<SlotArray>(),
                count: 1,
                items: std::ptr::null(),
            },
        }));
        // SAFETY: just made; the parts do not move any more.
        unsafe {
            (*parts).data.utf8 = (&raw const (*parts).cpu).cast();
            (*parts).slot.data = (&raw const (*parts).data).cast();
            (*parts).array.items = &raw const (*parts).slot;
        }
        Outputs(parts)
    }

    pub fn array(&self) -> *const SlotArray {
        // SAFETY: alive.
        unsafe { &raw const (*self.0).array }
    }
}

/// The slots of an array.
///
/// # Safety
/// Null, or an array of a host's.
pub unsafe fn slots(array: *const SlotArray) -> Result<Vec<View<Slot>>, Refusal> {
    if array.is_null() {
        return Ok(Vec::new());
    }
    let view = View::of(array)
        .ok_or_else(|| Refusal::invalid("a list of slots is not an InferenceDataSlotArray"))?;
    let count = field!(Some(view), SlotArray.count, 1, 0);
    let items = field!(Some(view), SlotArray.items, 1, std::ptr::null());
    if count > 0 && items.is_null() {
        return Err(Refusal::invalid("a list of slots has a count and no slots"));
    }
    let all = (0..count).map(|index| {
        View::of(items.add(index))
            .ok_or_else(|| Refusal::invalid("a slot is not an InferenceDataSlot"))
    });
    all.collect()
}

/// The bytes behind a text: what lies in memory of the CPU.
///
/// # Safety
/// `data` is null or a struct of a host's.
pub unsafe fn memory_of(data: *const Base, key: &str) -> Result<(*const u8, usize), Refusal> {
    let text = View::<DataText>::of(data.cast())
        .ok_or_else(|| Refusal::invalid(format!("slot '{key}' has no InferenceDataText")))?;
    let cpu = field!(Some(text), DataText.utf8, 1, std::ptr::null());
    let cpu = View::<CpuData>::of(cpu.cast()).ok_or_else(|| {
        Refusal::not_implemented(format!("slot '{key}': only texts in CpuData can be used"))
    })?;
    let buffer = field!(Some(cpu), CpuData.buffer, 1, std::ptr::null());
    let bytes = field!(Some(cpu), CpuData.bytes, 1, 0);
    Ok((buffer.cast(), bytes))
}

/// Writes an answer into the host's own outputs, with a zero byte behind it. Nothing is written where it does not fit.
///
/// # Safety
/// An array of the host's, with memory that may be written.
pub unsafe fn fill(array: *const SlotArray, text: &str) -> Result<(), Refusal> {
    for slot in slots(array)? {
        let key = field!(Some(slot), Slot.key, 1, std::ptr::null());
        if key.is_null() || CStr::from_ptr(key) != KEY {
            continue;
        }
        let data = field!(Some(slot), Slot.data, 1, std::ptr::null());
        let (buffer, room) = memory_of(data, "text")?;
        let text = crate::boundary::c_text(text);
        let bytes = text.as_bytes_with_nul();
        if buffer.is_null() || bytes.len() > room {
            return Err(Refusal::new(
                result::INSUFFICIENT_RESOURCES,
                format!(
                    "the host's output buffer has {room} bytes, and the text needs {}: make it larger, or leave outputs null",
                    bytes.len()
                ),
            ));
        }
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.cast_mut(), bytes.len());
        return Ok(());
    }
    Err(Refusal::invalid("outputs has no slot 'text'"))
}

/// What a function does with `outputs` of a context while it hands out a text.
///
/// # Safety
/// A context of a host's that nobody else reads meanwhile.
pub unsafe fn set(context: *mut Context, outputs: *const SlotArray) {
    (&raw mut (*context).outputs).write(outputs);
}
