//! The same as peer.go, by Rust and its crate vsock.
//! In version 0.2 try_clone() copies the descriptor's number, and both close it: references are passed instead.

use std::env::args;
use std::fs::File;
use std::io::{copy, stdin, BufRead, BufReader, Error, Write};
use std::net::Shutdown;
use std::os::unix::io::FromRawFd;
use std::thread;

use vsock::{VsockListener, VsockStream};

const ANY: u32 = u32::MAX;

fn argument(index: usize) -> u32 {
    args().nth(index).expect("too few arguments").parse().expect("not a number")
}

fn dial() -> Result<VsockStream, Error> {
    VsockStream::connect_with_cid_port(argument(2), argument(3))
}

fn listen() -> Result<VsockListener, Error> {
    VsockListener::bind_with_cid_port(ANY, argument(2))
}

/// Standard output without std::io::stdout's buffer, and closed when it is dropped.
fn output() -> File {
    unsafe { File::from_raw_fd(1) }
}

/// Copies both ways until both have ended.
fn join(conn: VsockStream) -> Result<(), Error> {
    eprintln!("here {}, there {}", conn.local_addr()?, conn.peer_addr()?);
    thread::scope(|scope| {
        let received = scope.spawn(|| copy(&mut &conn, &mut output()));
        copy(&mut stdin(), &mut &conn)?;
        conn.shutdown(Shutdown::Write)?;
        received.join().expect("the receiver panicked")?;
        Ok(())
    })
}

fn first_client() -> Result<VsockStream, Error> {
    Ok(listen()?.accept()?.0)
}

fn echo() -> Result<(), Error> {
    for conn in listen()?.incoming() {
        let conn = conn?;
        thread::spawn(move || copy(&mut &conn, &mut &conn));
    }
    Ok(())
}

fn many() -> Result<(), Error> {
    let mut conns = Vec::new();
    for _ in 0..argument(4) {
        conns.push(dial()?);
    }
    for (number, conn) in conns.iter_mut().enumerate() {
        writeln!(conn, "connection {}", number)?;
    }
    for (number, conn) in conns.iter().enumerate() {
        let mut line = String::new();
        BufReader::new(conn).read_line(&mut line)?;
        assert_eq!(line, format!("connection {}\n", number));
    }
    Ok(())
}

fn main() -> Result<(), Error> {
    match args().nth(1).as_deref() {
        Some("connect") => join(dial()?),
        Some("listen") => join(first_client()?),
        Some("echo") => echo(),
        Some("many") => many(),
        _ => panic!("connect, listen, echo or many"),
    }
}
