//! A chip for a kernel that has none: `preload.c` carries what the agent asks of it here, and this answers as `linux/gpio.h` has it. It shares
//! nothing with the library that the agent uses.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, recvmsg, send, sendmsg,
    shutdown, socket_with, socketpair,
};

/// Where a request for lines has its settings, and how many lines it is for.
const SETTINGS_AT: usize = 288;
const COUNT_AT: usize = 560;
/// The longest of all.
const REQUEST_BYTES: usize = 592;

/// What sets lines.
const SET: u8 = 0xF;

/// Flags of a line.
const USED: u64 = 1;
const ACTIVE_LOW: u64 = 2;
const INPUT: u64 = 4;
const OUTPUT: u64 = 8;
const RISING: u64 = 16;
const FALLING: u64 = 32;
pub(super) const PULL_UP: u64 = 256;

/// A line, and what became of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    name: String,
    is_high: bool,
    /// Who has it; nobody when that is empty.
    pub(super) consumer: String,
    pub(super) flags: u64,
    pub(super) debounce_us: u32,
    /// `high` and `low` as it was driven, and `free` when it was let go.
    pub(super) was: Vec<&'static str>,
    edges: u32,
}

impl Line {
    fn is_active(&self) -> bool {
        self.is_high != (self.flags & ACTIVE_LOW != 0)
    }

    fn drive(&mut self, active: bool) {
        self.is_high = active != (self.flags & ACTIVE_LOW != 0);
        self.was.push(if self.is_high { "high" } else { "low" });
    }
}

/// Lines that are open together.
struct Request {
    socket: Arc<OwnedFd>,
    offsets: Vec<usize>,
    edges: u32,
}

#[derive(Default)]
struct State {
    lines: Vec<Line>,
    requests: Vec<Request>,
    chips: Vec<Arc<OwnedFd>>,
    /// Whether lines are not set for now, and one waits to be.
    is_held: bool,
    waits: bool,
}

/// See the module. Gone with this value.
pub(super) struct Chip {
    folder: tempfile::TempDir,
    state: Arc<Mutex<State>>,
    listener: Option<Arc<OwnedFd>>,
}

impl Drop for Chip {
    fn drop(&mut self) {
        self.release();
        // A listener that is gone already accepts nothing.
        let _ = self.unplug();
    }
}

impl Chip {
    /// One with lines of these names.
    pub(super) fn new(names: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("gpio-").tempdir()?;
        let lines = names.iter().map(|name| Line { name: (*name).to_owned(), ..Line::default() }).collect();
        let state = Arc::new(Mutex::new(State { lines, ..State::default() }));
        let mut chip = Self { folder, state, listener: None };
        let source = e2e::repository().join("tests/e2e/gpio/preload.c");
        let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([chip.preload(), source]).output()?;
        anyhow::ensure!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        chip.plug()?;
        Ok(chip)
    }

    /// What an agent needs in `LD_PRELOAD` to find it.
    pub(super) fn preload(&self) -> PathBuf {
        self.folder.path().join("preload.so")
    }

    /// What the agent calls it.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join("gpiochip0")
    }

    /// It comes.
    pub(super) fn plug(&mut self) -> anyhow::Result<()> {
        let listener = Arc::new(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?);
        bind(&listener, &SocketAddrUnix::new(self.path())?)?;
        listen(&listener, 8)?;
        self.listener = Some(Arc::clone(&listener));
        let state = Arc::clone(&self.state);
        std::thread::spawn(move || {
            while let Ok(socket) = accept_with(&listener, SocketFlags::CLOEXEC) {
                let socket = Arc::new(socket);
                locked(&state).chips.push(Arc::clone(&socket));
                let state = Arc::clone(&state);
                std::thread::spawn(move || serve(&state, &socket, None));
            }
        });
        Ok(())
    }

    /// It goes, and what its lines were with it.
    pub(super) fn unplug(&mut self) -> anyhow::Result<()> {
        std::fs::remove_file(self.path())?;
        let mut state = locked(&self.state);
        let requests = state.requests.iter().map(|request| Arc::clone(&request.socket)).collect::<Vec<_>>();
        for socket in state.chips.drain(..).chain(requests).chain(self.listener.take()) {
            // The agent may have let go of it already.
            let _ = shutdown(&socket, Shutdown::Both);
        }
        Ok(())
    }

    /// How a line is.
    pub(super) fn line(&self, offset: usize) -> Line {
        locked(&self.state).lines[offset].clone()
    }

    /// Waits until the agent has it.
    pub(super) async fn is_open(&self, offset: usize) -> anyhow::Result<()> {
        e2e::until("the line to be open", async || self.line(offset).consumer.starts_with("tidegate:")).await
    }

    /// Somebody else has it, or nobody when that is empty.
    pub(super) fn takes(&self, offset: usize, who: &str) {
        who.clone_into(&mut locked(&self.state).lines[offset].consumer);
    }

    /// Sets no line until [`Chip::release`].
    pub(super) fn hold(&self) {
        locked(&self.state).is_held = true;
    }

    /// Sets lines again.
    pub(super) fn release(&self) {
        locked(&self.state).is_held = false;
    }

    /// Waits until the agent waits for a line to be set.
    pub(super) async fn is_setting(&self) -> anyhow::Result<()> {
        e2e::until("a line to be set", async || locked(&self.state).waits).await
    }

    /// The voltage of an input.
    pub(super) fn pull(&self, offset: usize, is_high: bool) -> anyhow::Result<()> {
        let mut state = locked(&self.state);
        let State { lines, requests, .. } = &mut *state;
        let line = &mut lines[offset];
        line.is_high = is_high;
        let Some(request) = requests.iter_mut().rfind(|request| request.offsets.contains(&offset)) else {
            return Ok(());
        };
        let (kind, wanted) = if line.is_active() { (1_u32, RISING) } else { (2, FALLING) };
        if line.flags & wanted == 0 {
            return Ok(());
        }
        (line.edges, request.edges) = (line.edges + 1, request.edges + 1);
        let mut event = (u64::from(request.edges) * 1_000_000_000).to_ne_bytes().to_vec();
        for number in [kind, u32::try_from(offset)?, request.edges, line.edges] {
            event.extend(number.to_ne_bytes());
        }
        event.resize(48, 0);
        send(&request.socket, &event, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// So many edges of an input find no room.
    pub(super) fn lose(&self, offset: usize, count: u32) {
        let mut state = locked(&self.state);
        state.lines[offset].edges += count;
        let request = state.requests.iter_mut().rfind(|request| request.offsets.contains(&offset));
        request.into_iter().for_each(|request| request.edges += count);
    }
}

fn locked(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers until the agent has closed the chip, or the lines that are `request`.
fn serve(state: &Arc<Mutex<State>>, socket: &OwnedFd, request: Option<usize>) {
    while let Ok(Some((code, mut argument, answer))) = received(socket) {
        while code == SET && waits(state) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (error, file) = match answered(state, code, &mut argument, request) {
            Ok(file) => (0, file),
            Err(error) => (error.raw_os_error(), None),
        };
        let error = i32::to_ne_bytes(error);
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files = file.as_ref().map(std::os::fd::AsFd::as_fd);
        if files.is_some() {
            control.push(SendAncillaryMessage::ScmRights(files.as_slice()));
        }
        let parts = [IoSlice::new(&error), IoSlice::new(&argument)];
        // An agent that was killed does not wait for it.
        let _ = sendmsg(&answer, &parts, &mut control, SendFlags::NOSIGNAL);
    }
    if let Some(request) = request {
        let mut state = locked(state);
        let offsets = std::mem::take(&mut state.requests[request].offsets);
        for offset in offsets {
            let line = &mut state.lines[offset];
            line.was.push("free");
            (line.is_high, line.flags, line.edges) = (false, 0, 0);
            line.consumer.clear();
        }
    }
}

/// Whether lines are not set for now; notes that one waits.
fn waits(state: &Mutex<State>) -> bool {
    let mut state = locked(state);
    state.waits = state.is_held;
    state.is_held
}

/// What is asked, with what, and where the answer goes.
fn received(socket: &OwnedFd) -> anyhow::Result<Option<(u8, Vec<u8>, OwnedFd)>> {
    let (mut code, mut argument) = ([0; 4], vec![0; REQUEST_BYTES]);
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(&mut code), IoSliceMut::new(&mut argument)];
    let bytes = recvmsg(socket, parts, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
    if bytes == 0 {
        return Ok(None);
    }
    let files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    let answer = files.flatten().next().context("nobody waits for the answer")?;
    argument.truncate(bytes - code.len());
    Ok(Some((code[0], argument, answer)))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

fn half(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn answered(
    state: &Arc<Mutex<State>>,
    code: u8,
    argument: &mut [u8],
    request: Option<usize>,
) -> Result<Option<OwnedFd>, Errno> {
    let mut guard = locked(state);
    let State { lines, requests, .. } = &mut *guard;
    let offsets = request.and_then(|request| requests.get(request)).map(|request| request.offsets.clone());
    let offsets = offsets.unwrap_or_default();
    match code {
        // What the chip is.
        1 => {
            put(argument, 0, b"gpiochip0");
            put(argument, 32, b"expander");
            put(argument, 64, &u32::try_from(lines.len()).unwrap_or_default().to_ne_bytes());
        }
        // What a line is.
        5 => {
            let line = lines.get(half(argument, 64) as usize).ok_or(Errno::INVAL)?;
            put(argument, 0, line.name.as_bytes());
            put(argument, 32, line.consumer.as_bytes());
            let used = if line.consumer.is_empty() { 0 } else { USED };
            put(argument, 72, &(line.flags | used).to_ne_bytes());
        }
        // Some of them.
        7 => {
            let count = half(argument, COUNT_AT) as usize;
            let offsets: Vec<usize> = (0..count).map(|i| half(argument, i * 4) as usize).collect();
            if offsets.iter().any(|offset| !lines[*offset].consumer.is_empty()) {
                return Err(Errno::BUSY);
            }
            let consumer = argument[256..288].split(|byte| *byte == 0).next().unwrap_or_default();
            for offset in &offsets {
                lines[*offset].consumer = String::from_utf8_lossy(consumer).into_owned();
            }
            configure(lines, &offsets, &argument[SETTINGS_AT..COUNT_AT]);
            let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
            let (ours, number) = (Arc::new(ours), requests.len());
            requests.push(Request { socket: Arc::clone(&ours), offsets, edges: 0 });
            let state = Arc::clone(state);
            std::thread::spawn(move || serve(&state, &ours, Some(number)));
            return Ok(Some(theirs));
        }
        0xD => configure(lines, &offsets, argument),
        // Their levels.
        0xE => {
            let active = offsets.iter().enumerate().filter(|(_, offset)| lines[**offset].is_active());
            let levels = active.fold(0_u64, |levels, (i, _)| levels | 1 << i);
            put(argument, 0, &levels.to_ne_bytes());
        }
        SET => {
            for (i, offset) in offsets.iter().enumerate().filter(|(i, _)| word(argument, 8) >> i & 1 == 1) {
                if lines[*offset].flags & OUTPUT == 0 {
                    return Err(Errno::PERM);
                }
                lines[*offset].drive(word(argument, 0) >> i & 1 == 1);
            }
        }
        _ => return Err(Errno::INVAL),
    }
    Ok(None)
}

/// Sets up lines: `settings` has flags for all, and up to ten others for some.
fn configure(lines: &mut [Line], offsets: &[usize], settings: &[u8]) {
    let others: Vec<&[u8]> = settings[32..].chunks_exact(24).take(half(settings, 8) as usize).collect();
    for (i, offset) in offsets.iter().enumerate() {
        let of = |kind| others.iter().find(|other| half(other, 0) == kind && word(other, 16) >> i & 1 == 1);
        let line = &mut lines[*offset];
        line.flags = of(1).map_or(word(settings, 0), |other| word(other, 8));
        line.debounce_us = of(3).map_or(0, |other| half(other, 8));
        if line.flags & OUTPUT != 0 {
            line.drive(of(2).is_some_and(|other| word(other, 8) >> i & 1 == 1));
        }
        assert!(line.flags & INPUT == 0 || line.flags & OUTPUT == 0, "a line has one direction");
    }
}
