//! Names of this test process's own functions, of a perf map, and of a process that is not there.

use proptest::prelude::*;

use super::*;

#[inline(never)]
fn a_function_to_find() -> u64 {
    std::hint::black_box(41) + 1
}

fn own(stacks: Vec<Vec<u64>>) -> Response {
    answer(&Request { pid: std::process::id(), stacks, ..Request::default() })
}

#[test]
fn own_functions_by_name() {
    let address = a_function_to_find as fn() -> u64 as usize as u64;
    assert_eq!(a_function_to_find(), 42);
    let response = own(vec![vec![address, address + 1], vec![], vec![address + 1]]);
    assert_eq!(response.problems, Vec::<String>::new());
    let [first, empty, last] = &response.stacks[..] else { panic!("{response:?}") };
    for name in first.iter().chain(last) {
        assert!(name.contains("symbolize::tests::a_function_to_find"), "{name}");
    }
    assert_eq!((first.len(), empty.len(), last.len()), (2, 0, 1));
}

#[test]
fn a_return_address_is_of_the_call_before_it() {
    let address = a_function_to_find as fn() -> u64 as usize as u64;
    let response = own(vec![vec![address, address]]);
    assert!(response.stacks[0][0].contains("a_function_to_find"), "{response:?}");
    assert!(!response.stacks[0][1].contains("a_function_to_find"), "{response:?}");
}

#[test]
fn a_perf_map_names_what_no_binary_does() {
    let path = format!("/tmp/perf-{}.map", std::process::id());
    std::fs::write(
        &path,
        "1000 100 LazyCompile:*leak /srv/app.js:10:5\n1100 10 JS:~other /srv/app.js:20:1\n11",
    )
    .unwrap();
    let response = own(vec![vec![0x1080, 0x1105, 0x1200]]);
    std::fs::remove_file(&path).unwrap();
    let expected = ["LazyCompile:*leak /srv/app.js:10:5", "JS:~other /srv/app.js:20:1", "0x1200"];
    assert_eq!(response.stacks, [expected.map(str::to_owned)]);
}

#[test]
fn a_place_in_a_file_where_there_is_no_symbol() {
    // The first bytes of this binary are its ELF header, which no function covers.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let exe = std::env::current_exe().unwrap();
    let line = maps.lines().find(|line| line.ends_with(exe.to_str().unwrap())).unwrap();
    let start = u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
    let file = exe.file_name().unwrap().to_str().unwrap();
    assert_eq!(own(vec![vec![start + 4]]).stacks, [[format!("{file}+0x4")]]);
}

#[test]
fn a_process_that_is_gone() {
    let response = answer(&Request {
        pid: u32::MAX - 1,
        stacks: vec![vec![0x1000, 0x2000]],
        ..Request::default()
    });
    assert_eq!(response.stacks, [["0x1000", "0x2000"]]);
    assert!(response.problems.iter().any(|problem| problem.contains("4294967294")), "{response:?}");
}

#[test]
fn bounds() {
    let response = own(vec![vec![]; MAX_STACKS + 1]);
    assert_eq!((response.stacks.len(), response.problems.len()), (0, 1));
    assert_eq!(response.problems[0], "257 stacks in a request; at most 256 are answered");
    assert_eq!(
        own(vec![vec![0; MAX_FRAMES + 1]]).problems[0],
        "a stack of 128 frames; at most 127 are answered"
    );
    assert_eq!(trimmed(&"é".repeat(MAX_NAME)).len(), MAX_NAME);
    assert_eq!(trimmed(&format!("a{}", "é".repeat(MAX_NAME))).len(), MAX_NAME - 1);
}

#[test]
fn json_of_both_sides() {
    let request: Request = serde_json::from_str(r#"{"pid":1,"stacks":[[4198400]]}"#).unwrap();
    assert_eq!(request, Request { pid: 1, stacks: vec![vec![4198400]], ..Request::default() });
    let response: Response = serde_json::from_str("{}").unwrap();
    assert_eq!(response, Response::default());
}

proptest! {
    #[test]
    fn as_many_names_as_frames(stacks in proptest::collection::vec(proptest::collection::vec(any::<u64>(), 0..5), 0..5)) {
        let named = named(&stacks, |addresses| {
            assert!(addresses.is_sorted_by(|a, b| a < b));
            addresses.iter().map(|address| (address % 2 == 0).then(|| "even".to_owned())).collect()
        });
        let lengths = |stacks: &[Vec<String>]| stacks.iter().map(Vec::len).collect::<Vec<_>>();
        prop_assert_eq!(lengths(&named), stacks.iter().map(Vec::len).collect::<Vec<_>>());
    }
}
