//! Reads of a tracepoint's record at places that the agent found in tracefs.
//!
//! By helper, not by a load: before 5.5 the verifier does not know a given constant's value and refuses it as an offset
//! into the context. Safety: the helper checks the address; a place beyond the record reads what else is there, never
//! faults.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_probe_read, bpf_probe_read_str},
    programs::TracePointContext,
};
use observer_abi::classic::{Fields, Place};

/// Given by the agent before loading.
#[unsafe(no_mangle)]
pub static FIELDS: Fields = Fields::NONE;

/// Mask of an offset: the kernel's limit of a record (PERF_MAX_TRACE_SIZE) is 8192.
const OFFSET_MASK: u64 = 0x1fff;

/// Place of a field of [`FIELDS`].
macro_rules! place {
    ($field:ident) => {
        unsafe { core::ptr::read_volatile(&raw const $crate::fields::FIELDS.$field) }
    };
}
pub(crate) use place;

/// Reads field `$field` of `$ctx` as a number, 0 if there is none.
macro_rules! number {
    ($ctx:expr, $field:ident) => {
        $crate::fields::read_number($ctx, $crate::fields::place!($field))
    };
}
pub(crate) use number;

/// Reads a number of up to eight bytes, zero-extended.
#[inline(always)]
pub fn read_number(ctx: &TracePointContext, place: Place) -> u64 {
    let bytes = place.bytes & 0xf;
    let mut value = 0_u64;
    if bytes <= 8 {
        read(ctx, place.offset, bytes, (&raw mut value).cast());
    }
    value
}

/// Reads sixteen bytes as two words; zeroes if there are none.
#[inline(always)]
pub fn words(ctx: &TracePointContext, place: Place) -> (u64, u64) {
    let mut value = [0_u64; 2];
    if place.bytes == 16 {
        read(ctx, place.offset, 16, (&raw mut value).cast());
    }
    (value[0], value[1])
}

/// `to` must have room for `bytes`.
#[inline(always)]
fn read(ctx: &TracePointContext, offset: u32, bytes: u32, to: *mut core::ffi::c_void) {
    let from = unsafe { ctx.as_ptr().cast::<u8>().add((u64::from(offset) & OFFSET_MASK) as usize) };
    // Fails for an address that is not mapped; the value is then zero.
    unsafe { bpf_probe_read(to, bytes, from.cast()) };
}

/// Copies a string whose offset and length the record holds (`__data_loc`).
#[inline(always)]
pub fn text<const N: usize>(ctx: &TracePointContext, place: Place, to: &mut [u8; N]) {
    *to = [0; N];
    if place.bytes != 4 {
        return;
    }
    let offset = read_number(ctx, place) & OFFSET_MASK;
    let from = unsafe { ctx.as_ptr().cast::<u8>().add(offset as usize) };
    unsafe { bpf_probe_read_str(to.as_mut_ptr().cast(), N as u32, from.cast()) };
}
