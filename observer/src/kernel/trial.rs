//! Trial calls: whether the kernel takes an empty program on a hook. Nothing of it stays.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// How a tracing program is attached (`enum bpf_attach_type`, include/uapi/linux/bpf.h).
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub enum Attach {
    /// BTF-typed tracepoint, `BPF_TRACE_RAW_TP`.
    Tracepoint = 23,
    /// Entry of a function, `BPF_TRACE_FENTRY`.
    Entry = 24,
    /// Iterator, `BPF_TRACE_ITER`.
    Iterator = 28,
}

/// bpf(2) commands.
const PROG_LOAD: libc::c_int = 5;
const RAW_TRACEPOINT_OPEN: libc::c_int = 17;
/// `BPF_PROG_TYPE_TRACING`.
const TRACING: u32 = 26;
/// `r0 = 0; exit` as the kernel encodes it (Documentation/bpf/standardization/instruction-set.rst).
const EMPTY: [u64; 2] = [0xb7, 0x95];

/// First 112 bytes of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log: [u64; 2],
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u64; 2],
    prog_ifindex: u32,
    expected_attach_type: u32,
    debug: [u64; 4],
    line_info_cnt: u32,
    attach_btf_id: u32,
}

const _: () = assert!(size_of::<Load>() == 112, "the kernel knows this structure by its offsets");

/// First 16 bytes of `union bpf_attr` for `BPF_RAW_TRACEPOINT_OPEN`.
#[repr(C)]
struct Open {
    name: u64,
    prog_fd: u32,
    reserved: u32,
}

/// Loads an empty tracing program for a hook; one on a function's entry is also attached for a moment, because some
/// kernels load what they cannot attach. `btf_id` is the hook's type in the kernel's BTF.
///
/// # Errors
/// Of bpf(2): EPERM without privileges, EINVAL if the kernel does not have this kind of hook.
pub fn tracing(attach: Attach, btf_id: u32) -> io::Result<()> {
    let load = Load {
        prog_type: TRACING,
        insn_cnt: 2,
        insns: EMPTY.as_ptr().expose_provenance() as u64,
        license: c"GPL".as_ptr().expose_provenance() as u64,
        expected_attach_type: attach as u32,
        attach_btf_id: btf_id,
        ..Load::default()
    };
    let program = bpf(PROG_LOAD, &load)?;
    if matches!(attach, Attach::Entry) {
        let prog_fd = u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?;
        super::let_go(bpf(RAW_TRACEPOINT_OPEN, &Open { name: 0, prog_fd, reserved: 0 })?);
    }
    Ok(())
}

fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: the attributes are a prefix of the kernel's union, as long as their size says, and what they point to lives
    // until the call returns; the kernel only reads it.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: both commands return a new descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
