//! Whom a record is about. Shared by both objects.

use aya_ebpf::{
    bindings::__u32,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_current_comm},
};
use observer_abi::{COMM_LEN, Header};

/// A task that a record names.
pub trait Subject {
    /// Fills in process, thread and command name.
    fn describe(self, header: &mut Header);
}

/// The running task, asked by helpers that all kernels have.
#[derive(Clone, Copy)]
pub struct Current {
    /// Its process.
    pub tgid: u32,
    /// Itself.
    pub tid: u32,
}

impl Current {
    /// Who is running.
    #[inline(always)]
    pub fn get() -> Self {
        let both = bpf_get_current_pid_tgid();
        Self { tgid: (both >> 32) as u32, tid: both as u32 }
    }

    /// Copies its command name.
    #[inline(always)]
    pub fn copy_comm(self, to: &mut [u8; COMM_LEN]) {
        // Fails only for a missing task; the name is then zeroes.
        unsafe { bpf_get_current_comm(to.as_mut_ptr().cast(), COMM_LEN as __u32) };
    }
}

impl Subject for Current {
    #[inline(always)]
    fn describe(self, header: &mut Header) {
        header.tgid = self.tgid;
        header.tid = self.tid;
        self.copy_comm(&mut header.comm);
    }
}
