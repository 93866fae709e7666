//! A user's disk quota that is used up: as a full disk, it passes.

#![allow(unsafe_code)]

use bytes::Bytes;
use muster_apiserver::store::{Backend, BackendError, Row, Sqlite};
use std::io;

/// From now on this thread's writes into files, at the places that SQLite gives, end with EDQUOT.
fn use_up_the_quota() -> io::Result<()> {
    let rule = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut rules = [
        rule(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        rule(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::SYS_pwrite64 as u32, 0, 1),
        rule(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EDQUOT as u32, 0, 0),
        rule(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog { len: rules.len() as u16, filter: rules.as_mut_ptr() };
    // SAFETY: system calls for the calling thread; the program and its rules outlive them.
    let outcome = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            | libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn row(revision: u64) -> Row {
    Row { revision, key: format!("/configmaps/ns/m{revision}"), value: Some(Bytes::from(vec![b'x'; 900])) }
}

#[test]
fn a_used_up_quota_refuses_writes_only_until_there_is_room() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut backend = Sqlite::open_sized(&folder.path().join("store.db"), 192 << 10).expect("opens");
    backend.load(&mut |_| {}).expect("loads");
    backend.commit(&[row(1)]).expect("commits");
    let limited = std::thread::spawn(move || {
        if let Err(error) = use_up_the_quota() {
            println!("skipped: the kernel takes no filter of system calls here: {error}");
            return backend;
        }
        for revision in 2..100 {
            let outcome = backend.commit(&[row(revision)]);
            assert!(matches!(outcome, Err(BackendError::Full(_))), "{outcome:?}");
        }
        assert!(matches!(backend.compact(1, &[1]), Err(BackendError::Full(_))));
        backend.idle().expect("tidying up can wait");
        backend
    });
    let mut backend = limited.join().expect("no panic");
    for revision in 100..300 {
        backend.commit(&[row(revision)]).expect("commits");
    }
    drop(backend);
    let mut backend = Sqlite::open_sized(&folder.path().join("store.db"), 192 << 10).expect("opens");
    let mut found = Vec::new();
    backend.load(&mut |row| found.push(row.revision)).expect("loads");
    assert_eq!(found, std::iter::once(1).chain(100..300).collect::<Vec<u64>>());
}
