//! The Rust side of `functions/wit`, generated from it.

/// `tidegate:function`: the handler, `emit` and `control`.
pub(crate) mod function {
    wasmtime::component::bindgen!({
        path: "../functions/wit",
        world: "function",
        exports: { default: async },
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}

/// `wasi:keyvalue`.
pub(crate) mod key_values {
    wasmtime::component::bindgen!({
        path: "../functions/wit",
        world: "key-values",
        imports: { default: trappable },
        with: { "wasi:keyvalue/store.bucket": crate::runtime::host::keyvalue::Bucket },
    });
}

/// `wasi:config`.
pub(crate) mod config {
    wasmtime::component::bindgen!({
        path: "../functions/wit",
        world: "config",
    });
}
