//! A DNS answer on the wire: one server on port 53 of a loopback address, one question, one answer.

use std::{
    net::{Ipv4Addr, UdpSocket},
    thread,
    time::Duration,
};

/// Address of the server. Not 127.0.0.53, where systemd-resolved may listen.
const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 9), 53);

/// Type A, class IN (RFC 1035 section 3.2).
const A_IN: [u8; 4] = [0, 1, 0, 1];

/// Asks for `name` and is told `address`.
pub fn resolve(name: &str, address: Ipv4Addr) {
    let server = UdpSocket::bind(SERVER).expect("root may bind port 53");
    let client = UdpSocket::bind(("127.0.0.1", 0)).expect("loopback has a free port");
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout above 0");
    }
    client.connect(SERVER).expect("loopback is up");
    let answering = thread::spawn(move || {
        let mut buffer = [0; 512];
        let (length, peer) = server.recv_from(&mut buffer).expect("the question comes");
        server.send_to(&answer(&buffer[..length], address), peer).expect("the client is there");
    });
    client.send(&question(name)).expect("the server is there");
    client.recv(&mut [0; 512]).expect("the answer comes");
    answering.join().expect("the server has answered");
}

/// Header: id 7, recursion desired, one question (RFC 1035 section 4.1).
fn question(name: &str) -> Vec<u8> {
    let mut message = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).expect("labels are at most 63 long"));
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(A_IN);
    message
}

/// The question with one answer, whose name is a pointer to the question's at offset 12.
fn answer(question: &[u8], address: Ipv4Addr) -> Vec<u8> {
    let mut message = question.to_vec();
    message[2..4].copy_from_slice(&[0x81, 0x80]);
    message[7] = 1;
    message.extend([0xc0, 12]);
    message.extend(A_IN);
    message.extend([0, 0, 0, 60, 0, 4]);
    message.extend(address.octets());
    message
}
