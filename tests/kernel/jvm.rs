//! A JVM: its connection and its threads have its name.

use observer_tests::{agent::Agent, jvm::Jvm, needs, redis::Redis, seconds};

#[test]
fn a_jvm_appears_with_its_identity() {
    let programs = ["java", "redis-server"];
    let Some(_host) = needs::host("jvm::a_jvm_appears_with_its_identity", &programs) else {
        return;
    };
    let redis = Redis::start();
    let agent = Agent::watching(&[redis.port]);
    let jvm = Jvm::start(redis.port);
    let pid = jvm.program.pid();
    let (row, process) =
        agent.wait_snapshot("the connection of the JVM", seconds(10), |snapshot| {
            snapshot.sched.threads.iter().find(|thread| thread.pid == pid)?;
            let mut rows = snapshot.tcp.connections.iter();
            let row = rows.find(|row| row.pid == pid && row.local_port == jvm.local_port)?;
            Some((row.clone(), snapshot.processes.get(&pid)?.clone()))
        });
    assert_eq!((row.name.as_str(), row.peer_port, row.preexisting), ("java", redis.port, false));
    assert!(process.executable.ends_with("/bin/java"), "{process:?}");
    assert!(process.command_line.contains("Hold.java"), "{process:?}");
    assert_eq!((process.parent_pid, process.user_name.as_str()), (std::process::id(), "root"));
    agent.stop();
}
