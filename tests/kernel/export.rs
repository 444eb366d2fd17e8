//! Export to a real receiver over both transports.

use std::process::Command;

use observer_tests::{
    agent::Agent,
    needs,
    program::Program,
    redis::{self, Redis},
    rotel::{self, Rotel},
    seconds,
    source::Source,
};

#[test]
fn rotel_gets_all_three_signals_over_http() {
    check("export::rotel_gets_all_three_signals_over_http", "http/protobuf", |rotel| {
        rotel.http_port
    });
}

#[test]
fn rotel_gets_all_three_signals_over_grpc() {
    check("export::rotel_gets_all_three_signals_over_grpc", "grpc", |rotel| rotel.grpc_port);
}

fn check(test: &str, protocol: &str, port: impl Fn(&Rotel) -> u16) {
    let Some(_host) = needs::host(test, &["redis-server", "cc"]) else { return };
    let binary = match rotel::find_binary() {
        Ok(binary) => binary,
        Err(reason) => return needs::skip(test, &reason),
    };
    let source = Source::new("grow.c", include_str!("../load/grow.c"));
    let grow = source.compile_c("grow");
    let (redis, rotel) = (Redis::start(), Rotel::start(binary));
    let agent = Agent::start(&[
        ("OBSERVER_TCP_PORTS", &redis.port.to_string()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://127.0.0.1:{}", port(&rotel))),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
    ]);
    redis::Client::connect(redis.port).unwrap().close();
    let _grown = Program::start(Command::new(grow).args(["200", "500"]));
    rotel
        .wait_for(&["tcp connection", "process.memory.usage", "observer.memory.step"], seconds(20));
    rotel.wait_for(&["network.peer.port", "service.name", "process.creation.time"], seconds(1));
    agent.wait_snapshot("an open exporter that has sent", seconds(5), |snapshot| {
        let exporter = snapshot.health.exporters.iter().find(|exporter| exporter.name == "otlp")?;
        assert_eq!((exporter.state.as_str(), exporter.dropped), ("open", 0), "{exporter:?}");
        (exporter.sent > 0).then_some(())
    });
    agent.stop();
}
