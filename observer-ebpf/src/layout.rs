//! Constants that the agent gives before loading. Shared by both objects.

use observer_abi::offsets::Layout;

/// Given by the agent before loading.
#[unsafe(no_mangle)]
pub static LAYOUT: Layout = Layout::NONE;

/// Value of a field of [`LAYOUT`], a constant to the verifier.
macro_rules! layout {
    ($field:ident) => {
        unsafe { core::ptr::read_volatile(&raw const $crate::layout::LAYOUT.$field) }
    };
}
pub(crate) use layout;
