//! Fills the constants that the programs need from the running kernel's BTF.

use observer_abi::{
    classic::{self, Fields, Place},
    offsets::{FIELDS, Layout, Offsets},
};
use zerocopy::IntoBytes as _;

use super::{
    btf::{Btf, Member},
    support::Tracefs,
};

/// What BTF has told.
pub struct Found {
    /// Offsets for the programs.
    pub offsets: Offsets,
    /// Layout for the programs, without the user's thresholds.
    pub layout: Layout,
    /// `structure.member` of each field that this kernel does not have.
    pub missing: Vec<String>,
}

/// Looks every field up.
pub fn find(btf: &Btf<'_>) -> Found {
    let mut offsets = Offsets::NONE;
    let mut missing = Vec::new();
    // The list and the structure come from one macro: the n-th word is the n-th field.
    let (words, _) = offsets.as_mut_bytes().as_chunks_mut::<8>();
    for ((structure, path), word) in FIELDS.iter().zip(words) {
        match btf.member(structure, path).filter(|member| member.bits == 0) {
            Some(member) => *word = byte_offset(member).to_ne_bytes(),
            None => missing.push(format!("{structure}.{path}")),
        }
    }
    let layout = layout(btf, &mut offsets);
    Found { offsets, layout, missing }
}

/// Places of the fields of classic tracepoints.
pub fn fields(tracefs: &Tracefs) -> Fields {
    let mut places = Fields::NONE;
    // As above: the n-th place is the n-th field.
    let (words, _) = places.as_mut_bytes().as_chunks_mut::<{ size_of::<Place>() }>();
    for ((event, name), word) in classic::FIELDS.iter().zip(words) {
        let mut fields = tracefs.events.get(*event).into_iter().flatten();
        if let Some(field) = fields.find(|field| field.name == *name) {
            let place = Place { offset: field.offset, bytes: field.size };
            word.copy_from_slice(place.as_bytes());
        }
    }
    places
}

fn byte_offset(member: Member) -> u64 {
    u64::from(member.bit_offset / 8)
}

fn layout(btf: &Btf<'_>, offsets: &mut Offsets) -> Layout {
    let rss = btf.member("mm_struct", "rss_stat");
    let counter = rss.and_then(|member| btf.element_size(member));
    if counter.is_none() {
        // Before 6.2: struct mm_rss_stat { atomic_long_t count[]; }.
        offsets.percpu_counter_count = 0;
    }
    let io_wait = btf.member("task_struct", "in_iowait");
    let parameters = |name| btf.tracepoint_parameters(name).unwrap_or_default();
    let registers = btf.member("pt_regs", "regs").filter(|_| cfg!(target_arch = "aarch64"));
    let [epoll_wait, epoll_pwait, epoll_pwait2] = EPOLL_SYSCALLS;
    Layout {
        rss_stride: u64::from(counter.unwrap_or(8)),
        mark_victim_has_task: u64::from(parameters("mark_victim").first() == Some(&true)),
        sched_switch_has_state: u64::from(parameters("sched_switch").len() >= 4),
        epoll_wait,
        epoll_pwait,
        epoll_pwait2,
        process_exit_has_group_dead: u64::from(parameters("sched_process_exit").len() >= 2),
        user_memory: 1,
        io_wait_byte: io_wait.map_or(0, byte_offset),
        io_wait_mask: io_wait.map_or(0, |member| 1 << (member.bit_offset % 8)),
        link_register: registers.map_or(0, |member| byte_offset(member) + LINK_REGISTER * 8),
        typed_helpers: u64::from(
            has_helper(btf, "get_current_task_btf") && has_helper(btf, "sock_from_file"),
        ),
        user_registers: user_registers(btf),
        ..Layout::NONE
    }
}

/// Whether the kernel has a helper of programs (include/uapi/linux/bpf.h).
fn has_helper(btf: &Btf<'_>, name: &str) -> bool {
    btf.has_value("bpf_func_id", &format!("BPF_FUNC_{name}"))
}

/// Where the registers are for a program without a helper that says so: at the end of the stack, which has 16 KiB, or a
/// page where that is larger (THREAD_SIZE and task_pt_regs of arch/{x86,arm64}).
fn user_registers(btf: &Btf<'_>) -> u64 {
    const STACK_BYTES: usize = 16 << 10;
    let stack = rustix::param::page_size().max(STACK_BYTES) as u64;
    match btf.size("pt_regs").filter(|_| !has_helper(btf, "task_pt_regs")) {
        Some(bytes) => stack - u64::from(bytes),
        None => 0,
    }
}

/// x30, as the procedure call standard of arm64 has it.
const LINK_REGISTER: u64 = 30;

/// epoll_wait, epoll_pwait, epoll_pwait2 (arch/*/entry/syscalls, include/uapi/asm-generic/unistd.h).
#[cfg(target_arch = "x86_64")]
const EPOLL_SYSCALLS: [u64; 3] = [232, 281, 441];
#[cfg(not(target_arch = "x86_64"))]
const EPOLL_SYSCALLS: [u64; 3] = [u64::MAX, 22, 441];
