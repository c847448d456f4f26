//! stub
#[no_mangle]
pub extern "C" fn pipeshard_version() -> u32 { 2 }
