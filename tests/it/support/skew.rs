//! A machine whose clock is wrong, for one process: a library that is loaded before all others
//! answers what the time is.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Only the time of day is wrong. What measures how long something takes is right on any machine.
const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *at) {
    int failed = (int)syscall(SYS_clock_gettime, clock, at);
    const char *skew = getenv("TEST_CLOCK_SKEW_SECS");
    if (!failed && clock == CLOCK_REALTIME && skew) at->tv_sec += atol(skew);
    return failed;
}
"#;

/// The library, as long as this value lives.
#[derive(Debug)]
pub struct WrongClock {
    library: PathBuf,
    _folder: TempDir,
}

impl WrongClock {
    /// Builds it.
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let (source, library) = (folder.path().join("clock.c"), folder.path().join("clock.so"));
        std::fs::write(&source, SOURCE).unwrap();
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .status();
        assert!(built.unwrap().success(), "cc builds a small library");
        Self { library, _folder: folder }
    }

    /// What a process loads before everything else.
    pub fn library(&self) -> &Path {
        &self.library
    }
}
