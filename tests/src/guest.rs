//! Functions that behave as a test wants: the real contract, written in WAT, no toolchain for guests.

use std::path::Path;

use anyhow::Context as _;

#[path = "../../agent/src/runtime/tests/guest.rs"]
#[expect(
    clippy::unwrap_used,
    reason = "the agent's own tests share it; a guest that does not assemble is a bug of the test"
)]
mod source;

/// What a guest does with an event, and the texts in its memory from 2048 on.
#[derive(Clone, Debug)]
pub struct Guest {
    body: String,
    texts: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Handles,
    /// Files too, of this mount.
    Reads(String),
    /// Requests instead of events.
    TakesRequests,
}

impl Guest {
    /// Publishes the payload on `topic`, and returns it.
    pub fn forward(topic: &str) -> Self {
        let body = format!(
            "(drop (call $publish (i32.const 2048) (i32.const {}) (call $data (local.get $event)) (call $data_bytes (local.get $event))))
             (call $answer (call $data (local.get $event)) (call $data_bytes (local.get $event)))",
            topic.len()
        );
        Self { body, texts: topic.to_owned(), kind: Kind::Handles }
    }

    /// Appends the payload to `stream`, and returns it.
    pub fn append(stream: &str) -> Self {
        Self {
            body: Self::forward(stream).body.replace("$publish", "$append"),
            texts: stream.to_owned(),
            kind: Kind::Handles,
        }
    }

    /// Returns the payload.
    pub fn echo() -> Self {
        Self::raw("(call $answer (call $data (local.get $event)) (call $data_bytes (local.get $event)))", "")
    }

    /// A handler of WAT; see the prelude of the agent's own guests for what it may call.
    pub fn raw(body: &str, texts: &str) -> Self {
        Self { body: body.to_owned(), texts: texts.to_owned(), kind: Kind::Handles }
    }

    /// Returns the file of `/opt` that the payload names, and rejects what cannot be read.
    pub fn reads_layers() -> Self {
        Self::reads("/opt")
    }

    /// The same of another mount, whose name has a length of its own.
    pub fn reads(mount: &str) -> Self {
        Self { kind: Kind::Reads(mount.to_owned()), ..Self::raw(source::READS_FILES, "no file") }
    }

    /// A component of `wasi:http` that answers with the request: status 201, its headers, `x-path`, `x-method`, its body.
    pub fn echoes_requests() -> Self {
        Self::takes_requests(source::HTTP_ECHO, source::HTTP_ECHO_TEXTS)
    }

    /// The same with a handler of WAT, which has `$request` and `$out`.
    pub fn takes_requests(body: &str, texts: &str) -> Self {
        Self { kind: Kind::TakesRequests, ..Self::raw(body, texts) }
    }

    /// Does `body` first when the payload begins with `letter`.
    #[must_use]
    pub fn but_on(self, letter: u8, body: &str) -> Self {
        let Self { body: otherwise, texts, kind } = self;
        let first = "(i32.load8_u (call $data (local.get $event)))";
        let body = format!("(if (i32.eq {first} (i32.const {letter})) (then {body}))\n{otherwise}");
        Self { body, texts, kind }
    }

    /// The component itself.
    pub fn component(&self) -> Vec<u8> {
        match &self.kind {
            Kind::Handles => source::component(&self.body, &self.texts),
            Kind::Reads(mount) => source::component_with_files(mount, &self.body, &self.texts),
            Kind::TakesRequests => source::http_component(&self.body, &self.texts),
        }
    }

    /// Writes it as a bundle; a newer version takes the place of an older one.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn write(&self, bundle: &Path, version: &str) -> anyhow::Result<()> {
        let name = bundle.file_name().and_then(|name| name.to_str()).context("a bundle needs a name")?;
        std::fs::create_dir_all(bundle)?;
        std::fs::write(bundle.join("guest.wasm"), self.component())?;
        let manifest =
            format!("name = \"{name}\"\nversion = \"{version}\"\nruntime = \"wasm\"\ncomponent = \"guest.wasm\"\n");
        Ok(std::fs::write(bundle.join("function.toml"), manifest)?)
    }
}
