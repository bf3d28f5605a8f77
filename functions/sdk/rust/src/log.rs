//! Lines for the function's log.

use std::fmt::Arguments;

/// One line at a time, so that lines of several instances do not mix.
#[doc(hidden)]
pub fn write(level: &str, message: Arguments<'_>) {
    crate::host::log(&format!("{level}: {message}\n"));
}

/// Logs a line for whoever looks for the cause of something.
#[macro_export]
macro_rules! debug {
    ($($message:tt)+) => { $crate::__private::write("debug", ::core::format_args!($($message)+)) };
}

/// Logs a line.
#[macro_export]
macro_rules! info {
    ($($message:tt)+) => { $crate::__private::write("info", ::core::format_args!($($message)+)) };
}

/// Logs a line about something that is not as it should be, but was coped with.
#[macro_export]
macro_rules! warn {
    ($($message:tt)+) => { $crate::__private::write("warn", ::core::format_args!($($message)+)) };
}

/// Logs a line about something that a person should look at.
#[macro_export]
macro_rules! error {
    ($($message:tt)+) => { $crate::__private::write("error", ::core::format_args!($($message)+)) };
}
