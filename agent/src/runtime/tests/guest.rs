//! Guests written in WAT: the real contract, no toolchain.

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

const WORLD: &str = "
    package test:guest;
    world guest {
        include tidegate:function/sdk@0.1.0;
        import wasi:clocks/monotonic-clock@0.2.12;
        import wasi:filesystem/preopens@0.2.12;
        import wasi:filesystem/types@0.2.12;
        import wasi:sockets/instance-network@0.2.12;
    }";

/// What the handlers below may use. Memory up to 8192 is theirs: results at 1024, texts from 2048 on.
const PRELUDE: &str = r#"
  (import "tidegate:function/emit@0.1.0" "publish"
    (func $emit_publish (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)))
  (import "tidegate:function/emit@0.1.0" "append" (func $emit_append (param i32 i32 i32 i32 i32)))
  (import "tidegate:function/control@0.1.0" "write" (func $control_write (param i32 i32 i32 i32 i32 i64 i32)))
  (import "wasi:cli/stderr@0.2.12" "get-stderr" (func $stderr (result i32)))
  (import "wasi:io/streams@0.2.12" "[method]output-stream.blocking-write-and-flush"
    (func $write (param i32 i32 i32 i32)))
  (import "wasi:clocks/monotonic-clock@0.2.12" "subscribe-duration" (func $after (param i64) (result i32)))
  (import "wasi:io/poll@0.2.12" "[method]pollable.block" (func $block (param i32)))
  (import "wasi:random/random@0.2.12" "get-random-u64" (func $random (result i64)))
  (import "wasi:keyvalue/store@0.2.0-draft" "open" (func $open (param i32 i32 i32)))
  (import "wasi:keyvalue/store@0.2.0-draft" "[method]bucket.set" (func $set (param i32 i32 i32 i32 i32 i32)))
  (import "wasi:keyvalue/store@0.2.0-draft" "[method]bucket.get" (func $get (param i32 i32 i32 i32)))
  (import "wasi:keyvalue/atomics@0.2.0-draft" "increment" (func $increment (param i32 i32 i32 i64 i32)))
  (import "wasi:config/store@0.2.0-rc.1" "get" (func $config (param i32 i32 i32)))
  (memory (export "memory") 1)
  (global $top (mut i32) (i32.const 8192))
  (func $grow_to (param $end i32)
    (block $enough
      (br_if $enough (i32.le_u (local.get $end) (i32.mul (memory.size) (i32.const 65536))))
      (br_if $enough (i32.ge_s (memory.grow (i32.add (i32.const 1) (i32.div_u
        (i32.sub (local.get $end) (i32.mul (memory.size) (i32.const 65536))) (i32.const 65536)))) (i32.const 0)))
      unreachable))
  (func (export "cabi_realloc") (param i32 i32) (param $align i32) (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $top) (i32.const 7)) (i32.const -8)))
    (global.set $top (i32.add (local.get $at) (local.get $size)))
    (call $grow_to (global.get $top))
    (local.get $at))
  (func (export "cabi_post_handle") (param i32) (global.set $top (i32.const 8192)))
  (func $answer (param $at i32) (param $bytes i32) (result i32)
    (i32.store8 (i32.const 1024) (i32.const 0))
    (i32.store (i32.const 1028) (local.get $at))
    (i32.store (i32.const 1032) (local.get $bytes))
    (i32.const 1024))
  (func $fail (param $kind i32) (param $at i32) (param $bytes i32) (result i32)
    (i32.store8 (i32.const 1024) (i32.const 1))
    (i32.store8 (i32.const 1028) (local.get $kind))
    (i32.store (i32.const 1032) (local.get $at))
    (i32.store (i32.const 1036) (local.get $bytes))
    (i32.const 1024))
  ;; With the text of a refused emit, which is at 1104.
  (func $fail_with_refusal (param $kind i32) (result i32)
    (call $fail (local.get $kind) (i32.load (i32.const 1104)) (i32.load (i32.const 1108))))
  (func $say (param $at i32) (param $bytes i32)
    (call $write (call $stderr) (local.get $at) (local.get $bytes) (i32.const 1200)))
  (func $publish (param $topic i32) (param $topic_bytes i32) (param $at i32) (param $bytes i32) (result i32)
    (call $emit_publish (local.get $topic) (local.get $topic_bytes) (local.get $at) (local.get $bytes)
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1100))
    (i32.load8_u (i32.const 1100)))
  (func $append (param $stream i32) (param $stream_bytes i32) (param $at i32) (param $bytes i32) (result i32)
    (call $emit_append (local.get $stream) (local.get $stream_bytes) (local.get $at) (local.get $bytes) (i32.const 1100))
    (i32.load8_u (i32.const 1100)))
  ;; To a whole number.
  (func $set_point (param $source i32) (param $source_bytes i32) (param $point i32) (param $point_bytes i32) (param $value i64) (result i32)
    (call $control_write (local.get $source) (local.get $source_bytes) (local.get $point) (local.get $point_bytes)
      (i32.const 1) (local.get $value) (i32.const 1100))
    (i32.load8_u (i32.const 1100)))
  (func $data (param $event i32) (result i32) (i32.load (i32.add (local.get $event) (i32.const 68))))
  (func $data_bytes (param $event i32) (result i32) (i32.load (i32.add (local.get $event) (i32.const 72))))
"#;

/// A component whose handler is `body`, with `texts` in its memory from 2048 on.
pub(crate) fn component(body: &str, texts: &str) -> Vec<u8> {
    module(&format!(
        r#"(module $guest {PRELUDE}
            (data (i32.const 2048) "{texts}")
            (func $handle (export "handle") (param $event i32) (result i32) (local $i i32) {body}))"#
    ))
}

/// The same, which may also read files: `$open_file` gives a descriptor, or -1, of a path below `mount`, which is told from other mounts by its
/// length; `$read_file` puts bytes at 1208 (where) and 1212 (how many), and says whether that failed.
pub(crate) fn component_with_files(mount: &str, body: &str, texts: &str) -> Vec<u8> {
    const IMPORTS: &str = r#"
        (import "wasi:filesystem/preopens@0.2.12" "get-directories" (func $directories (param i32)))
        (import "wasi:filesystem/types@0.2.12" "[method]descriptor.open-at"
          (func $open_at (param i32 i32 i32 i32 i32 i32 i32)))
        (import "wasi:filesystem/types@0.2.12" "[method]descriptor.read" (func $read (param i32 i64 i64 i32)))"#;
    const FILES: &str = r#"
        (func $open_file (param $path i32) (param $bytes i32) (param $create i32) (param $flags i32) (result i32)
          (local $at i32) (local $left i32)
          (call $directories (i32.const 1204))
          (local.set $at (i32.load (i32.const 1204)))
          (local.set $left (i32.load (i32.const 1208)))
          (loop $next
            (if (i32.eqz (local.get $left)) (then (return (i32.const -1))))
            (if (i32.ne (i32.load (i32.add (local.get $at) (i32.const 8))) (global.get $mount_bytes)) (then
              (local.set $at (i32.add (local.get $at) (i32.const 12)))
              (local.set $left (i32.sub (local.get $left) (i32.const 1)))
              (br $next))))
          (call $open_at (i32.load (local.get $at)) (i32.const 1) (local.get $path) (local.get $bytes)
            (local.get $create) (local.get $flags) (i32.const 1204))
          (if (result i32) (i32.load8_u (i32.const 1204)) (then (i32.const -1)) (else (i32.load (i32.const 1208)))))
        (func $read_file (param $file i32) (result i32)
          (call $read (local.get $file) (i64.const 4096) (i64.const 0) (i32.const 1204))
          (i32.load8_u (i32.const 1204)))"#;
    let mount_bytes = mount.len();
    module(&format!(
        r#"(module $guest {IMPORTS} {PRELUDE} (global $mount_bytes i32 (i32.const {mount_bytes})) {FILES}
            (data (i32.const 2048) "{texts}")
            (func $handle (export "handle") (param $event i32) (result i32) (local $i i32) {body}))"#
    ))
}

/// A handler for that: answers with the file that the payload names, and rejects what cannot be read; a payload that begins with `!` asks to write.
pub(crate) const READS_FILES: &str = r#"
    (local.set $i (if (result i32) (i32.eq (i32.load8_u (call $data (local.get $event))) (i32.const 33))
      (then (call $open_file (i32.add (call $data (local.get $event)) (i32.const 1))
        (i32.sub (call $data_bytes (local.get $event)) (i32.const 1)) (i32.const 1) (i32.const 2)))
      (else (call $open_file (call $data (local.get $event)) (call $data_bytes (local.get $event))
        (i32.const 0) (i32.const 1)))))
    (if (i32.eq (local.get $i) (i32.const -1)) (then (return (call $fail (i32.const 1) (i32.const 2048) (i32.const 7)))))
    (if (call $read_file (local.get $i)) (then (return (call $fail (i32.const 1) (i32.const 2048) (i32.const 7)))))
    (call $answer (i32.load (i32.const 1208)) (i32.load (i32.const 1212)))"#;

/// What a component that takes requests may use, with the WIT of `wasi:http` as its other hosts have it.
const HTTP: &str = include_str!("http.wit");
const HTTP_WORLD: &str = "
    package test:guest;
    world guest {
        include wasi:http/proxy@0.2.12;
        import tidegate:function/emit@0.1.0;
    }";
const HTTP_PRELUDE: &str = r#"
  (import "wasi:http/types@0.2.12" "[method]incoming-request.method" (func $request_method (param i32 i32)))
  (import "wasi:http/types@0.2.12" "[method]incoming-request.path-with-query" (func $request_path (param i32 i32)))
  (import "wasi:http/types@0.2.12" "[method]incoming-request.headers" (func $request_headers (param i32) (result i32)))
  (import "wasi:http/types@0.2.12" "[method]incoming-request.consume" (func $request_body (param i32 i32)))
  (import "wasi:http/types@0.2.12" "[method]incoming-body.stream" (func $body_stream (param i32 i32)))
  (import "wasi:io/streams@0.2.12" "[method]input-stream.blocking-read" (func $read (param i32 i64 i32)))
  (import "wasi:http/types@0.2.12" "[constructor]fields" (func $fields (result i32)))
  (import "wasi:http/types@0.2.12" "[method]fields.clone" (func $fields_clone (param i32) (result i32)))
  (import "wasi:http/types@0.2.12" "[method]fields.append" (func $fields_append (param i32 i32 i32 i32 i32 i32)))
  (import "wasi:http/types@0.2.12" "[constructor]outgoing-response" (func $response (param i32) (result i32)))
  (import "wasi:http/types@0.2.12" "[method]outgoing-response.set-status-code"
    (func $response_status (param i32 i32) (result i32)))
  (import "wasi:http/types@0.2.12" "[method]outgoing-response.body" (func $response_body (param i32 i32)))
  (import "wasi:http/types@0.2.12" "[static]response-outparam.set"
    (func $answer (param i32 i32 i32 i32 i64 i32 i32 i32 i32)))
  (import "wasi:http/types@0.2.12" "[method]outgoing-body.write" (func $body_write (param i32 i32)))
  (import "wasi:http/types@0.2.12" "[static]outgoing-body.finish" (func $body_finish (param i32 i32 i32 i32)))
  (import "wasi:http/types@0.2.12" "[resource-drop]outgoing-body" (func $body_drop (param i32)))
  (import "wasi:io/streams@0.2.12" "[method]output-stream.blocking-write-and-flush"
    (func $write (param i32 i32 i32 i32)))
  (import "wasi:io/streams@0.2.12" "[resource-drop]output-stream" (func $stream_drop (param i32)))
  (import "wasi:http/types@0.2.12" "[constructor]outgoing-request" (func $outgoing (param i32) (result i32)))
  (import "wasi:http/types@0.2.12" "[method]outgoing-request.set-method"
    (func $outgoing_method (param i32 i32 i32 i32) (result i32)))
  (import "wasi:http/types@0.2.12" "[method]outgoing-request.set-authority"
    (func $outgoing_authority (param i32 i32 i32 i32) (result i32)))
  (import "wasi:http/types@0.2.12" "[method]outgoing-request.set-path-with-query"
    (func $outgoing_path (param i32 i32 i32 i32) (result i32)))
  (import "wasi:http/outgoing-handler@0.2.12" "handle" (func $outgoing_handle (param i32 i32 i32 i32)))
  (import "wasi:http/types@0.2.12" "[method]future-incoming-response.subscribe"
    (func $sent_subscribe (param i32) (result i32)))
  (import "wasi:io/poll@0.2.12" "[method]pollable.block" (func $block (param i32)))
  (import "wasi:http/types@0.2.12" "[method]future-incoming-response.get" (func $sent_get (param i32 i32)))
  (import "tidegate:function/emit@0.1.0" "publish"
    (func $emit_publish (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)))
  (memory (export "memory") 4)
  (global $top (mut i32) (i32.const 8192))
  (global $body (mut i32) (i32.const 0))
  (func (export "cabi_realloc") (param i32 i32) (param $align i32) (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $top) (i32.const 7)) (i32.const -8)))
    (global.set $top (i32.add (local.get $at) (local.get $size)))
    (local.get $at))
  ;; Answers with a body, and gives the stream that it is written to.
  (func $begin (param $out i32) (param $headers i32) (param $status i32) (result i32)
    (local $response i32)
    (local.set $response (call $response (local.get $headers)))
    (if (call $response_status (local.get $response) (local.get $status)) (then unreachable))
    (call $response_body (local.get $response) (i32.const 1024))
    (global.set $body (i32.load (i32.const 1028)))
    (call $answer (local.get $out) (i32.const 0) (local.get $response) (i32.const 0) (i64.const 0)
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))
    (call $body_write (global.get $body) (i32.const 1024))
    (i32.load (i32.const 1028)))
  (func $write_all (param $to i32) (param $at i32) (param $bytes i32)
    (local $part i32)
    (loop $next
      (local.set $part (select (local.get $bytes) (i32.const 4096) (i32.lt_u (local.get $bytes) (i32.const 4096))))
      (call $write (local.get $to) (local.get $at) (local.get $part) (i32.const 1024))
      (local.set $at (i32.add (local.get $at) (local.get $part)))
      (local.set $bytes (i32.sub (local.get $bytes) (local.get $part)))
      (br_if $next (local.get $bytes))))
  ;; Asks for `/` of another server, and gives what will be the response.
  (func $send (param $authority i32) (param $bytes i32) (result i32)
    (local $request i32)
    (local.set $request (call $outgoing (call $fields)))
    (if (call $outgoing_authority (local.get $request) (i32.const 1) (local.get $authority) (local.get $bytes))
      (then unreachable))
    (i32.store8 (i32.const 1100) (i32.const 47))
    (if (call $outgoing_path (local.get $request) (i32.const 1) (i32.const 1100) (i32.const 1)) (then unreachable))
    (call $outgoing_handle (local.get $request) (i32.const 0) (i32.const 0) (i32.const 1040))
    (if (i32.load8_u (i32.const 1040)) (then unreachable))
    (i32.load (i32.const 1048)))
  (func $end (param $stream i32)
    (call $stream_drop (local.get $stream))
    (call $body_finish (global.get $body) (i32.const 0) (i32.const 0) (i32.const 1024)))
"#;

/// A component that takes requests: `body` has `$request`, and answers to `$out`.
pub(crate) fn http_component(body: &str, texts: &str) -> Vec<u8> {
    let wat = format!(
        r#"(module $guest {HTTP_PRELUDE}
            (data (i32.const 2048) "{texts}")
            (func $handle (export "wasi:http/incoming-handler@0.2.12#handle") (param $request i32) (param $out i32)
              (local $stream i32) (local $i i32) {body}))"#
    );
    encode(&[("http.wit", HTTP), ("guest.wit", HTTP_WORLD)], &wat)
}

/// Answers with status 201, the request's headers, its path as `x-path`, the number of its method in the standard as `x-method`, and its body.
pub(crate) const HTTP_ECHO: &str = r#"
    (local.set $i (call $fields_clone (call $request_headers (local.get $request))))
    (call $request_path (local.get $request) (i32.const 1040))
    (call $fields_append (local.get $i) (i32.const 2048) (i32.const 6)
      (i32.load (i32.const 1044)) (i32.load (i32.const 1048)) (i32.const 1024))
    (call $request_method (local.get $request) (i32.const 1040))
    (i32.store8 (i32.const 1052) (i32.add (i32.const 48) (i32.load8_u (i32.const 1040))))
    (call $fields_append (local.get $i) (i32.const 2054) (i32.const 8) (i32.const 1052) (i32.const 1) (i32.const 1024))
    (local.set $stream (call $begin (local.get $out) (local.get $i) (i32.const 201)))
    (call $request_body (local.get $request) (i32.const 1040))
    (call $body_stream (i32.load (i32.const 1044)) (i32.const 1056))
    (loop $more
      (global.set $top (i32.const 8192))
      (call $read (i32.load (i32.const 1060)) (i64.const 65536) (i32.const 1040))
      (if (i32.eqz (i32.load8_u (i32.const 1040))) (then
        (call $write_all (local.get $stream) (i32.load (i32.const 1044)) (i32.load (i32.const 1048)))
        (br $more))))
    (call $end (local.get $stream))"#;
/// The texts for that.
pub(crate) const HTTP_ECHO_TEXTS: &str = "x-pathx-method";

/// A component around a core module of WAT.
pub(crate) fn module(wat: &str) -> Vec<u8> {
    encode(&[("guest.wit", WORLD)], wat)
}

/// The same by packages of WIT, of which the last one has the world.
fn encode(packages: &[(&str, &str)], wat: &str) -> Vec<u8> {
    let mut resolve = Resolve::default();
    resolve.push_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../functions/wit")).unwrap();
    let packages: Vec<_> = packages.iter().map(|(file, text)| resolve.push_str(file, text).unwrap()).collect();
    let world = resolve.select_world(&packages[packages.len() - 1..], Some("guest")).unwrap();
    let mut module = wat::parse_str(wat).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().module(&module).unwrap().validate(true).encode().unwrap()
}
