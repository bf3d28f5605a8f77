//! Guests written in WAT: the real contract, no toolchain.

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

const WORLD: &str = "
    package test:guest;
    world guest {
        include tidegate:function/sdk@0.1.0;
        import wasi:clocks/monotonic-clock@0.2.12;
        import wasi:filesystem/preopens@0.2.12;
        import wasi:sockets/instance-network@0.2.12;
    }";

/// What the handlers below may use. Memory up to 8192 is theirs: results at 1024, texts from 2048 on.
const PRELUDE: &str = r#"
  (import "tidegate:function/emit@0.1.0" "publish"
    (func $emit_publish (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)))
  (import "tidegate:function/emit@0.1.0" "append" (func $emit_append (param i32 i32 i32 i32 i32)))
  (import "wasi:cli/stderr@0.2.12" "get-stderr" (func $stderr (result i32)))
  (import "wasi:io/streams@0.2.12" "[method]output-stream.blocking-write-and-flush"
    (func $write (param i32 i32 i32 i32)))
  (import "wasi:clocks/monotonic-clock@0.2.12" "subscribe-duration" (func $after (param i64) (result i32)))
  (import "wasi:io/poll@0.2.12" "[method]pollable.block" (func $block (param i32)))
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

/// A component around a core module of WAT.
pub(crate) fn module(wat: &str) -> Vec<u8> {
    let mut resolve = Resolve::default();
    resolve.push_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../functions/wit")).unwrap();
    let package = resolve.push_str("guest.wit", WORLD).unwrap();
    let world = resolve.select_world(&[package], Some("guest")).unwrap();
    let mut module = wat::parse_str(wat).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().module(&module).unwrap().validate(true).encode().unwrap()
}
