//! `wasi:http`, for components that export its `incoming-handler`: the request comes in and the response goes out whole, and nothing else
//! is sent.

use bytes::Bytes;
use futures_util::future::{Either, select};
use http_body_util::{BodyExt as _, Full};
use tokio::sync::oneshot;
use wasmtime::component::{Linker, Resource, ResourceTable};
use wasmtime::{Store, StoreContextMut};
use wasmtime_wasi_http::p2::bindings::Proxy;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, HostOutgoingRequest as _, Method, Scheme};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;
use wasmtime_wasi_http::p2::types::HostOutgoingRequest;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView};

use super::log::{Channel, Log};
use super::state::HostState;
use crate::trigger::http::wasi;
use crate::units::ByteSize;

/// What a component exports that is called with requests, in front of the version.
pub(crate) const HANDLER: &str = "wasi:http/incoming-handler@0.2.";
/// What such a component may import besides what all may.
pub(crate) const INTERFACES: &[&str] = &["wasi:http/types@0.2.", "wasi:http/outgoing-handler@0.2."];

/// Most handles that one instance may hold: each may stand for headers, or for a part of a body that waits.
pub(crate) const HANDLES_MAX: usize = 100;
/// Most that the names and values of one set of headers may take, in bytes: what a request may have.
const FIELDS_BYTES_MAX: usize = 64 << 10;
/// Largest part of a body that is handed over at once, in bytes.
const PART_BYTES_MAX: usize = 64 << 10;
/// Longest method, authority or path of a request that it makes, in bytes: what servers take.
const TARGET_BYTES_MAX: usize = 8 << 10;
/// Where those are set, as the linker has it.
const TYPES: &str = "wasi:http/types@0.2.12";

type Response = hyper::Response<HyperOutgoingBody>;

/// What one instance has of it.
pub(crate) struct Http {
    context: WasiHttpCtx,
    hooks: Hooks,
}

impl Http {
    /// Refused requests are told to `log`.
    pub(crate) fn new(log: Log) -> Self {
        let mut context = WasiHttpCtx::new();
        context.set_field_size_limit(FIELDS_BYTES_MAX);
        Self { context, hooks: Hooks { log } }
    }

    pub(crate) fn view<'a>(&'a mut self, table: &'a mut ResourceTable) -> WasiHttpCtxView<'a> {
        WasiHttpCtxView { hooks: &mut self.hooks, table, ctx: &mut self.context }
    }
}

struct Hooks {
    log: Log,
}

type Sent<T> = Box<dyn Future<Output = Result<T, Error>> + Send>;

impl WasiHttpHooks for Hooks {
    fn send_request(
        &mut self,
        request: hyper::Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Sent<()>,
    ) -> Sent<(hyper::Response<WasiBody>, Sent<()>)> {
        let (method, uri) = (request.method(), request.uri());
        self.log.tell(
            Channel::Err,
            &format!("refused: {method} {uri}: functions get no outgoing HTTP; send with `emit` instead"),
        );
        Box::new(std::future::ready(Err(Error::HttpRequestDenied)))
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        PART_BYTES_MAX
    }
}

pub(crate) fn add_to_linker(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    // The library keeps a method and an authority of any length, for each request that is held.
    linker.allow_shadowing(true);
    let mut types = linker.instance(TYPES)?;
    types.func_wrap("[method]outgoing-request.set-method", |mut store: Guest<'_>, (request, method)| {
        let is_long = matches!(&method, Method::Other(name) if name.len() > TARGET_BYTES_MAX);
        let set = if is_long { Err(()) } else { store.data_mut().http().set_method(request, method)? };
        Ok((set,))
    })?;
    let texts: [(&str, SetText); 2] = [
        ("[method]outgoing-request.set-authority", |http, request, text| http.set_authority(request, text)),
        ("[method]outgoing-request.set-path-with-query", |http, request, text| http.set_path_with_query(request, text)),
    ];
    for (name, set) in texts {
        types.func_wrap(name, move |mut store: Guest<'_>, (request, text): (_, Option<String>)| {
            let is_long = text.as_ref().is_some_and(|text| text.len() > TARGET_BYTES_MAX);
            let set = if is_long { Err(()) } else { set(&mut store.data_mut().http(), request, text)? };
            Ok((set,))
        })?;
    }
    linker.allow_shadowing(false);
    Ok(())
}

type Guest<'a> = StoreContextMut<'a, HostState>;
type SetText =
    fn(&mut WasiHttpCtxView<'_>, Resource<HostOutgoingRequest>, Option<String>) -> wasmtime::Result<Result<(), ()>>;

/// Has `component` answer `request`: what it returns, of at most `bytes_max`, or why that is no answer. Afterwards its instance is of no more use.
pub(crate) async fn answer(
    store: &mut Store<HostState>,
    component: &Proxy,
    request: hyper::Request<Full<Bytes>>,
    bytes_max: usize,
) -> wasmtime::Result<Result<Vec<u8>, String>> {
    let (sender, receiver) = oneshot::channel();
    let mut http = store.data_mut().http();
    let request = http.new_incoming_request(Scheme::Http, request)?;
    let out = http.new_response_outparam(sender)?;
    let call = Box::pin(component.wasi_http_incoming_handler().call_handle(&mut *store, request, out));
    let read = Box::pin(read(receiver, bytes_max));
    // A body is written only as fast as it is read.
    let (called, read) = match select(call, read).await {
        Either::Left(left) => left,
        Either::Right((Err(why), _)) => return Ok(Err(why)),
        Either::Right((answer, call)) => return call.await.map(|()| answer),
    };
    called?;
    // What the component did not let go of would never end.
    store.data_mut().table = ResourceTable::new();
    Ok(read.await)
}

/// The response that comes, whole, as what the function returns.
async fn read(response: oneshot::Receiver<Result<Response, ErrorCode>>, bytes_max: usize) -> Result<Vec<u8>, String> {
    let response = match response.await {
        Ok(Ok(response)) => response,
        Ok(Err(code)) => return Err(format!("it answered with an error in the place of a response: {code:?}")),
        Err(_) => return Err("it returned without a response: it did not call `response-outparam.set`".to_owned()),
    };
    let (head, mut body) = response.into_parts();
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| {
            "it gave up the body of its response: `outgoing-body.finish` was not called, or for another length than \
             `content-length` says"
        })?;
        // Trailers are not sent on: nobody would read them.
        let Ok(part) = frame.into_data() else { continue };
        if whole.len() + part.len() > bytes_max {
            let max = ByteSize(bytes_max as u64);
            return Err(format!("the body of its response is more than `output_bytes_max` = {max}"));
        }
        // Each part alone would cost more than it holds.
        whole.extend_from_slice(&part);
    }
    wasi::value(&head, &whole)
}
