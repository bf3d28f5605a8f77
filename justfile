# List the recipes.
default:
    @just --list

# Format, spelling, links, dependencies, clippy.
check:
    tests/run check

# All tests; `just test NAME` runs those whose name contains it.
test *name:
    {{ if name == "" { "tests/run test" } else { "cargo test --workspace " + name } }}

# What CI runs: check and test.
ci:
    tests/run

# Rewrite the sources in the house's format.
fmt:
    cargo fmt --all

# The whole main job on this machine; `just demo --once` ends by itself.
demo *arguments:
    cargo run --release --bin tidegate -- demo {{ arguments }}

# Each figure beside its reference in the same run; `just bench --quick`, `just bench --only NAME`.
bench *arguments:
    cargo build --release -p tidegate -p e2e
    target/release/bench {{ arguments }}

# Fuzz each parser, or those that are named, for so many seconds.
fuzz seconds="60" *parsers:
    tests/fuzz/run {{ seconds }} {{ parsers }}

# Make the components of the examples again, and their lock.
functions:
    functions/build-examples

# The agent as gateways get it, for TARGET (x86-64, aarch64 or armv7); `just cross aarch64 --thin`.
cross target *options:
    cross/build {{ target }} {{ options }}

# The core of the end-to-end tests with a gateway's agent, emulated, for TARGET (aarch64 or armv7); `just emulated armv7 gateway`.
emulated target="aarch64" *build:
    cross/suite {{ target }} {{ build }}

# The .deb and the tarball for TARGET (x86-64, aarch64 or armv7), of what was built for it; `just package aarch64 --thin`.
package target *options:
    cross/package {{ target }} {{ options }}

# Tries the package in a clean Debian that boots; as root.
try-package *options:
    cross/try-package {{ options }}

# The API documentation of the crates.
docs:
    cargo doc --workspace --no-deps
