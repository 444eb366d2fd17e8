fn main() {
    tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).init();
    let options = observer::kernel::Options { btf: observer::kernel::BTF_PATH.into(), ring_bytes: 1<<20, fault_period: 64, gap_threshold: std::time::Duration::from_millis(40), stall_threshold: std::time::Duration::from_millis(100), run_delay_threshold: std::time::Duration::from_millis(50), reclaim_threshold: std::time::Duration::from_millis(10), ports: vec![5432, 6379], log_level: 0 };
    let mut kernel = observer::kernel::Kernel::open(&options);
    for p in kernel.programs() { println!("{:20} {:40} {:?} {} {}", p.name, p.hook, p.verdict, p.reason, p.remedy); }
    let mut rows = Vec::new();
    let t = std::time::Instant::now();
    kernel.tasks(&mut rows).unwrap();
    println!("{} rows in {:?}", rows.len(), t.elapsed());
    for r in rows.iter().take(4) { println!("{r:?}"); }
    let mut socks = Vec::new();
    let t = std::time::Instant::now();
    println!("{:?} {} {:?}", kernel.sockets(&mut socks), socks.len(), t.elapsed());
    let mut holders = Vec::new();
    let t = std::time::Instant::now();
    println!("{:?} {} {:?}", kernel.holders(&mut holders), holders.len(), t.elapsed());
    for r in holders.iter().take(4) { println!("{r:?}"); }
    println!("{}", kernel.map_bytes());
}
