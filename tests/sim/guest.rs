//! The functions of a simulation: one handler that does what its event says, letter by letter.
//!
//! | letter | does |
//! |---|---|
//! | `a` | appends the payload to the function's own stream |
//! | `b` | appends the payload to the stream `shared` |
//! | `c` | adds one to the function's count, and appends the payload with the new count to its own stream |
//! | `0` `1` `2` | publishes the payload on `out/FUNCTION` with this QoS |
//! | `w` | waits for 20 ms |
//! | `rN` `tN` `sN` | up to attempt N asks for another attempt, traps, or waits until its timeout |
//! | `x` | rejects the event |

use std::path::Path;

use e2e::Guest;

/// Texts in the guest's memory.
struct Texts {
    all: String,
}

impl Texts {
    /// `i32.const`s of address and length.
    fn put(&mut self, text: &str) -> String {
        let at = 2048 + self.all.len();
        self.all.push_str(text);
        format!("(i32.const {at}) (i32.const {})", text.len())
    }
}

/// Variables, in memory: the handler has no locals to spare.
const NEXT: &str = "(i32.const 1300)";
const BUCKET: &str = "(i32.const 1308)";
const SHIFT: &str = "(i32.const 1312)";
const DIGIT: &str = "(i32.const 1316)";
const DATA: &str = "(call $data (local.get $event)) (call $data_bytes (local.get $event))";

/// Writes the bundle of function `name`.
pub fn write(bundle: &Path, name: &str, version: &str) -> anyhow::Result<()> {
    let mut texts = Texts { all: String::new() };
    let own = texts.put(&format!("from-{name}"));
    let shared = texts.put("shared");
    let topic = texts.put(&format!("out/{name}"));
    let bucket = texts.put("counts");
    let key = texts.put("runs");
    let why = texts.put("as it was told");
    let refused = texts.put("a host call was refused");
    let (load, store) =
        (|at: &str| format!("(i32.load {at})"), |at: &str, value: &str| format!("(i32.store {at} {value})"));
    let text_at = |at: usize, text: &str| {
        let bytes = text.bytes().enumerate();
        bytes
            .map(|(i, byte)| format!("(i32.store8 (i32.const {}) (i32.const {byte}))", 4096 + at + i))
            .collect::<String>()
    };
    let on = |letter: char, body: &str| {
        format!("(if (i32.eq (local.get $i) (i32.const {})) (then {body}))\n", u32::from(letter))
    };
    let fails = |kind: u8, text: &str| format!("(return (call $fail (i32.const {kind}) {text}))");
    let checked = |call: &str| format!("(if {call} (then {}))", fails(0, &refused));
    // The digit behind the letter, and whether this attempt is one of those that it means.
    let step = store(NEXT, &format!("(i32.add {} (i32.const 1))", load(NEXT)));
    let attempt = "(i32.load (i32.add (local.get $event) (i32.const 104)))";
    let until_attempt = |body: &str| {
        format!(
            "{} {step} (if (i32.le_u {attempt} {}) (then {body}))",
            store(DIGIT, &format!("(i32.sub (i32.load8_u {}) (i32.const 48))", load(NEXT))),
            load(DIGIT)
        )
    };
    let publish = |qos: u8| {
        format!(
            "(call $emit_publish {topic} {DATA} (i32.const 1) (i32.const {qos}) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1100))
             {}",
            checked("(i32.load8_u (i32.const 1100))")
        )
    };
    // The record of a count, from 4096 on.
    let head = r#"{"count":""#;
    let middle = r#"","of":"#;
    let data_at = 4096 + head.len() + 8 + middle.len();
    let count = format!(
        "(if (i32.eqz {bucket_now}) (then
            (call $open {bucket} (i32.const 1400))
            {open_failed}
            {keep_bucket}))
         (call $increment {bucket_now} {key} (i64.const 1) (i32.const 1400))
         {increment_failed}
         {head} {middle}
         {start}
         (block $done (loop $digits
            (br_if $done (i32.eq {shift} (i32.const 8)))
            {digit}
            (i32.store8 (i32.add (i32.const {digits_at}) {shift})
                (i32.add {digit_now} (select (i32.const 48) (i32.const 87) (i32.lt_u {digit_now} (i32.const 10)))))
            {next_shift}
            (br $digits)))
         (memory.copy (i32.const {data_at}) {DATA})
         (i32.store8 (i32.add (i32.const {data_at}) (call $data_bytes (local.get $event))) (i32.const 125))
         {append}",
        bucket_now = load(BUCKET),
        open_failed = checked("(i32.load8_u (i32.const 1400))"),
        keep_bucket = store(BUCKET, "(i32.load (i32.const 1404))"),
        increment_failed = checked("(i32.load8_u (i32.const 1400))"),
        head = text_at(0, head),
        middle = text_at(head.len() + 8, middle),
        start = store(SHIFT, "(i32.const 0)"),
        shift = load(SHIFT),
        digit = store(
            DIGIT,
            &format!(
                "(i32.and (i32.shr_u (i32.load (i32.const 1408)) (i32.mul (i32.sub (i32.const 7) {}) (i32.const 4))) (i32.const 15))",
                load(SHIFT)
            )
        ),
        digit_now = load(DIGIT),
        digits_at = 4096 + head.len(),
        next_shift = store(SHIFT, &format!("(i32.add {} (i32.const 1))", load(SHIFT))),
        append = checked(&format!(
            "(call $append {own} (i32.const 4096) (i32.add (call $data_bytes (local.get $event)) (i32.const {})))",
            head.len() + 8 + middle.len() + 1
        )),
    );
    let sleep = |ns: u64| format!("(call $block (call $after (i64.const {ns})))");
    let letters = [
        on('a', &checked(&format!("(call $append {own} {DATA})"))),
        on('b', &checked(&format!("(call $append {shared} {DATA})"))),
        on('c', &count),
        on('0', &publish(0)),
        on('1', &publish(1)),
        on('2', &publish(2)),
        on('w', &sleep(20_000_000)),
        on('r', &until_attempt(&fails(0, &why))),
        on('t', &until_attempt("unreachable")),
        on('s', &until_attempt(&sleep(3_600_000_000_000))),
        on('x', &fails(1, &why)),
    ];
    // Behind `{"do":"`.
    let start = store(NEXT, "(i32.add (call $data (local.get $event)) (i32.const 7))");
    let body = format!(
        "{start}
         (block $end (loop $letter
            (local.set $i (i32.load8_u {next}))
            {step}
            (br_if $end (i32.eq (local.get $i) (i32.const 34)))
            {letters}
            (br $letter)))
         (call $answer {DATA})",
        next = load(NEXT),
        letters = letters.concat(),
    );
    Guest::raw(&body, &texts.all).write(&bundle.join(name), version)
}
