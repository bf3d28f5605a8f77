//! `#[handler]` of `function-sdk`, which re-exports it.

use proc_macro::TokenStream;
use quote::quote;
use syn::{Error, FnArg, ItemFn, parse_macro_input};

/// Makes a function the handler of its component.
///
/// It takes an `Event`, or an `Event` and a `Context`, and returns `Result<T, Failure>`. `T` may be
/// - anything that implements `serde::Serialize`: its JSON is the result,
/// - `Vec<u8>`: the result as it is,
/// - `Message` or `Vec<Message>`: they are published, and the result is empty,
/// - `()`, or the `None` of an `Option`: the result is empty.
///
/// The function itself stays as it is, so that tests can call it.
#[proc_macro_attribute]
pub fn handler(options: TokenStream, item: TokenStream) -> TokenStream {
    let function = parse_macro_input!(item as ItemFn);
    match takes_context(&function) {
        _ if !options.is_empty() => {
            refuse(&function, "`#[handler]` takes no options: a function's settings are in its function.toml")
        }
        Ok(takes_context) => export(&function, takes_context),
        Err(why) => refuse(&function, why),
    }
}

fn takes_context(function: &ItemFn) -> Result<bool, &'static str> {
    let signature = &function.sig;
    if signature.asyncness.is_some() {
        return Err("a handler is not `async`: what it waits for, it waits for in place");
    }
    if !signature.generics.params.is_empty() {
        return Err("a handler has no generic parameters");
    }
    match signature.inputs.len() {
        _ if signature.inputs.iter().any(|input| matches!(input, FnArg::Receiver(_))) => {
            Err("a handler is a function, not a method")
        }
        1 => Ok(false),
        2 => Ok(true),
        _ => Err("a handler takes `event: Event`, or `event: Event, context: Context`"),
    }
}

fn export(function: &ItemFn, takes_context: bool) -> TokenStream {
    let name = &function.sig.ident;
    let call = if takes_context { quote!(#name(event, context)) } else { quote!(#name(event)) };
    quote! {
        #[allow(dead_code, reason = "called from outside, in WebAssembly")]
        #function

        #[cfg(target_family = "wasm")]
        const _: () = {
            struct Handler;
            impl ::function_sdk::__private::Guest for Handler {
                fn handle(
                    event: ::function_sdk::__private::Event,
                    context: ::function_sdk::__private::Context,
                ) -> ::core::result::Result<::std::vec::Vec<u8>, ::function_sdk::__private::Failure> {
                    ::function_sdk::__private::run(event, context, |event, context| {
                        let _ = &context;
                        use ::function_sdk::__private::{Json as _, Returned};
                        Returned(#call?).into_result()
                    })
                }
            }
            ::function_sdk::__private::export!(Handler);
        };
    }
    .into()
}

fn refuse(function: &ItemFn, why: &str) -> TokenStream {
    Error::new_spanned(&function.sig, why).into_compile_error().into()
}
