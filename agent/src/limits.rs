//! Every bound that the agent enforces. A field bug becomes a refused event, never a dead gateway.

use std::time::Duration;

use crate::units::{ByteSize, Span};

/// What one function, one event and one gateway may use. Defaults fit a 512 MB board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest a handler may be configured to run: Lambda's maximum.
    pub timeout_max: Span,
    /// Timeout of a handler that names none: Lambda's default.
    pub timeout_default: Span,
    /// Memory of a function that names none; Lambda's default of 128 MB does not fit twice on a small board.
    pub memory_default: ByteSize,
    /// Linear memory is 32-bit.
    pub memory_max: ByteSize,
    /// Instances of one function at the same time when it names none.
    pub concurrency_default: u32,
    /// More threads of work than this only queue inside one gateway.
    pub concurrency_max: u32,
    /// How long a warm instance waits for its next event.
    pub instance_idle: Span,
    /// Events that wait in memory for one function. With QoS 0 what comes beyond is dropped and counted.
    pub queue_events_max: usize,
    /// Payload bytes that wait in memory for one function, by the same rule.
    pub queue_bytes_max: ByteSize,
    /// Events that wait in memory, for whichever function, before those of QoS 1 and 2 for the busiest one wait on disk: three
    /// quarters of `mqtt_in_flight_max`, so that the broker can go on sending meanwhile.
    pub spill_events: usize,
    /// How long an event of QoS 1 or 2 waits in memory before it and those that come wait on disk: a broker of MQTT 3.1.1 may
    /// have as few as 20 under way, and has room for 1,000 more.
    pub spill_after: Span,
    /// Events of one function that wait on disk, a day of one every second. With QoS 1 and 2 what comes beyond is not
    /// acknowledged.
    pub parked_events_max: usize,
    /// The same in bytes.
    pub parked_bytes_max: ByteSize,
    /// Idempotency keys of one function that are known to be dealt with: about 5 MB of memory. Beyond, the oldest are forgotten
    /// before their window ends.
    pub seen_keys_max: usize,
    /// Longest `idempotency.window`.
    pub seen_window_max: Span,
    /// Topics, or whatever `per` says, of which the filter of one trigger knows what passed last: about 5 MB. Beyond, it forgets
    /// the one that was silent for longest, whose next event passes.
    pub filter_keys_max: usize,
    /// Events that the filter of one trigger has left out and that are acknowledged with the one that passed before: as many as ten
    /// brokers may have under way. Those beyond are acknowledged at once.
    pub filter_waiting_max: usize,
    /// Events in one window: those of 200 bytes fill the largest event, beyond which it is cut in any case.
    pub window_events_max: u32,
    /// Topics, or whatever `per` says, of which one trigger has a window open. Beyond, the one that is open for longest ends early.
    pub window_keys_max: usize,
    /// Events that wait in windows of one function, on disk and in memory: some 10 MB beside their payloads. From half of it on the
    /// window that is open for longest ends early; beyond, events are not acknowledged.
    pub windowed_events_max: usize,
    /// The same in bytes.
    pub windowed_bytes_max: ByteSize,
    /// Events that wait for windows of a function that is gone: long enough to notice that it is. Older ones become dead letters.
    pub windowed_age_max: Span,
    /// Payloads of one source that functions have not got rid of. Then it waits.
    pub source_bytes_max: ByteSize,
    /// Longest line of a program or a file.
    pub source_line_bytes_max: ByteSize,
    /// What functions want set by one source and is not yet. Then they wait.
    pub source_writes_max: usize,
    /// Files that are known of one folder: about 10 MB of memory, as much on disk. Those beyond are not handled until others go.
    pub source_files_max: usize,
    /// Largest event: a quarter of MQTT's packet maximum would still fill a small board.
    pub event_bytes_max: ByteSize,
    /// Largest value that a handler returns: Lambda's 6 MB would be four of these.
    pub output_bytes_max: ByteSize,
    /// Most that one invocation may publish, append and write, payloads added up.
    pub effects_bytes_max: ByteSize,
    /// Most calls of `publish`, `append`, `control.write` and key-value writes of one invocation.
    pub effects_max: usize,
    /// Most log output of one invocation; what comes beyond is cut and said.
    pub log_bytes_max: ByteSize,
    /// Longest chain of functions that hand an event on.
    pub hops_max: u32,
    /// Largest component, before it is compiled.
    pub component_bytes_max: ByteSize,
    /// Memory that a process may take which compiles one component: that of a language's runtime takes half of it. On a machine with less
    /// than twice of it, half of what there is.
    pub compile_bytes_max: ByteSize,
    /// How long it may take: a language's runtime on a small board that is busy.
    pub compile_max: Span,
    /// All files of a bundle, unpacked: a component, and a language's sources beside it.
    pub bundle_bytes_max: ByteSize,
    /// Files and folders in a bundle, and in the layers of one function.
    pub bundle_entries_max: usize,
    /// Layers of one function: Lambda's 5.
    pub layers_max: usize,
    /// All files of the layers of one function, unpacked.
    pub layers_bytes_max: ByteSize,
    /// Largest model file.
    pub model_bytes_max: ByteSize,
    /// Key-value: longest key or bucket name.
    pub key_bytes_max: ByteSize,
    /// Largest input or output of a model, and all that one instance holds at the same time: a guest keeps them on the host,
    /// outside its own memory. A 1080p picture in f32 is 24 MiB.
    pub tensor_bytes_max: ByteSize,
    /// Key-value: largest value.
    pub value_bytes_max: ByteSize,
    /// Key-value: all values of one function.
    pub key_value_bytes_max: ByteSize,
    /// Key-value: most keys that one invocation may read; each is looked at again when it commits.
    pub key_value_reads_max: usize,
    /// Stream record.
    pub record_bytes_max: ByteSize,
    /// Largest record of the agent's own: an event or a publish whole, as a dead letter a third larger still.
    pub kept_bytes_max: ByteSize,
    /// Publishes for one broker that were committed and are not confirmed: a week of 100 bytes a second. When it is full, functions
    /// that need it wait.
    pub outbox_bytes_max: ByteSize,
    /// A segment of the journal is full when this was written to it: small enough to be read at a start, large enough that a
    /// new one is rare.
    pub segment_bytes: ByteSize,
    /// All streams and key-values together; beyond, the oldest records of the lowest priority go, and are counted.
    pub buffer_bytes_max: ByteSize,
    /// Records of streams with `durability = "1s"` or more that wait in memory; beyond, they are written at once.
    pub held_bytes_max: ByteSize,
    /// QoS 1 and 2 messages that a broker may have under way to the agent (MQTT 5 receive maximum).
    pub mqtt_in_flight_max: u16,
    /// Publishes that wait for their PUBACK, per broker.
    pub mqtt_unconfirmed_max: u16,
    /// Messages that the embedded broker keeps for one client that is away or slow; beyond, the oldest are dropped and counted.
    pub broker_queue_messages_max: usize,
    /// Messages that the embedded broker has acknowledged from disk while functions work on them; beyond, devices wait.
    pub broker_held_messages_max: usize,
    /// Their budget on disk.
    pub broker_held_bytes_max: ByteSize,
    /// Topics of which the embedded broker keeps a retained message.
    pub broker_retained_messages_max: usize,
    /// Environment of a function: Lambda's 4 KB.
    pub environment_bytes_max: ByteSize,
    /// Log records kept in memory for `tidegate logs`: a few screens.
    pub log_ring_records_max: usize,
    /// All of them together.
    pub log_ring_bytes_max: ByteSize,
    /// Longest log line; what comes beyond is cut.
    pub log_line_bytes_max: ByteSize,
    /// Longest text, in bytes, by which a function says why it gives up; what comes beyond is cut.
    pub failure_bytes_max: usize,
    /// How often the same warning is written within a minute; the next says how many were left out.
    pub log_repeats_max: u32,
    /// Invocations whose spans wait for the trace collector: about 2 MB; what comes beyond is dropped and counted.
    pub trace_invocations_max: usize,
    /// Runs of one function that are kept for those who look, of those that succeeded and of those that failed.
    pub recent_runs_max: usize,
    /// How much time is between two of those that succeeded.
    pub recent_runs_every: Span,
    /// Longest text of such a run: a topic, or why it failed. With all of them at their bounds a function has some 300 KB.
    pub recent_text_bytes_max: usize,
    /// How far back the latencies go that the console shows: their counts take some 24 KB for each function that runs.
    pub recent_window: Span,
    /// Connections to the API at the same time, per listener; more wait to be accepted.
    pub api_connections_max: usize,
    /// How long a caller may take to send a request, and to take some of the answer.
    pub api_request_max: Span,
    /// Line, headers and what is buffered of a body of one request.
    pub api_head_bytes_max: usize,
    /// People who are signed in to the console at the same time; with one more the oldest is not any more.
    pub console_sessions_max: usize,
    /// Requests to the URLs of one function at the same time: half of the connections, so that one that is slow leaves some to the
    /// others.
    pub url_calls_max: usize,
    /// Parameters of a query: each costs far more memory in an event than on the line.
    pub url_parameters_max: usize,
    /// Events in one batch of `POST /v1/events`.
    pub api_batch_events_max: usize,
    /// Who may record at the same time: each of them costs every event that it wants.
    pub recordings_max: usize,
    /// Events that wait for one who records; those beyond are left out and counted.
    pub recording_events_max: usize,
    /// The same in bytes, with what came of the events.
    pub recording_bytes_max: ByteSize,
    /// Longest line of a recording: an event, what came of it and what it had read, in base64, a few times over.
    pub recording_line_bytes_max: ByteSize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timeout_max: Span::from_secs(900),
            timeout_default: Span::from_secs(3),
            memory_default: ByteSize::mib(64),
            memory_max: ByteSize::mib(4096),
            concurrency_default: 4,
            concurrency_max: 256,
            instance_idle: Span::from_secs(60),
            queue_events_max: 10_000,
            queue_bytes_max: ByteSize::mib(16),
            spill_events: 750,
            spill_after: Span(Duration::from_millis(250)),
            parked_events_max: 100_000,
            parked_bytes_max: ByteSize::mib(64),
            seen_keys_max: 100_000,
            seen_window_max: Span::from_secs(30 * 86_400),
            filter_keys_max: 10_000,
            filter_waiting_max: 10_000,
            window_events_max: 5_000,
            window_keys_max: 10_000,
            windowed_events_max: 50_000,
            windowed_bytes_max: ByteSize::mib(16),
            windowed_age_max: Span::from_secs(7 * 86_400),
            source_bytes_max: ByteSize::mib(1),
            source_line_bytes_max: ByteSize(64 << 10),
            source_writes_max: 64,
            source_files_max: 100_000,
            event_bytes_max: ByteSize::mib(1),
            output_bytes_max: ByteSize::mib(1),
            effects_bytes_max: ByteSize::mib(4),
            effects_max: 1_000,
            log_bytes_max: ByteSize(64 << 10),
            hops_max: 16,
            component_bytes_max: ByteSize::mib(128),
            compile_bytes_max: ByteSize::mib(1024),
            compile_max: Span::from_secs(900),
            bundle_bytes_max: ByteSize::mib(256),
            bundle_entries_max: 20_000,
            layers_max: 5,
            layers_bytes_max: ByteSize::mib(256),
            model_bytes_max: ByteSize::mib(512),
            key_bytes_max: ByteSize(1 << 10),
            tensor_bytes_max: ByteSize::mib(32),
            value_bytes_max: ByteSize::mib(1),
            key_value_bytes_max: ByteSize::mib(64),
            key_value_reads_max: 4_000,
            record_bytes_max: ByteSize::mib(1),
            kept_bytes_max: ByteSize::mib(8),
            outbox_bytes_max: ByteSize::mib(64),
            segment_bytes: ByteSize::mib(4),
            buffer_bytes_max: ByteSize::mib(1024),
            held_bytes_max: ByteSize::mib(1),
            mqtt_in_flight_max: 1_000,
            mqtt_unconfirmed_max: 1_000,
            broker_queue_messages_max: 100_000,
            broker_held_messages_max: 1_000,
            broker_held_bytes_max: ByteSize::mib(16),
            broker_retained_messages_max: 10_000,
            environment_bytes_max: ByteSize(4 << 10),
            log_ring_records_max: 2_000,
            log_ring_bytes_max: ByteSize::mib(1),
            log_line_bytes_max: ByteSize(16 << 10),
            failure_bytes_max: 16 << 10,
            log_repeats_max: 10,
            trace_invocations_max: 1_024,
            recent_runs_max: 32,
            recent_runs_every: Span(Duration::from_millis(250)),
            recent_text_bytes_max: 1 << 10,
            recent_window: Span::from_secs(300),
            api_connections_max: 64,
            api_request_max: Span::from_secs(30),
            api_head_bytes_max: 64 << 10,
            console_sessions_max: 64,
            url_calls_max: 32,
            url_parameters_max: 1_000,
            api_batch_events_max: 1_000,
            recordings_max: 4,
            recording_events_max: 1_000,
            recording_bytes_max: ByteSize::mib(4),
            recording_line_bytes_max: ByteSize::mib(16),
        }
    }
}
