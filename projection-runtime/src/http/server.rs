//! Takes connections, so many and for so long: neither many clients nor slow ones take the process down, or its memory.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// Connections at a time; more wait to be taken.
const CONNECTIONS: usize = 256;
/// How long a client may take to send the head of a request, also the next one of a connection that stays.
const HEAD: Duration = Duration::from_secs(10);
/// How long a client may take to read a part of an answer.
const WRITE: Duration = Duration::from_secs(10);
/// How long a connection is kept for further requests.
const KEPT: Duration = Duration::from_mins(2);
/// The longest head, in bytes.
const HEAD_SIZE: usize = 16 << 10;

/// Answers until `shutdown` is ready, and ends when what was asked before is answered.
pub(super) async fn serve(listener: TcpListener, router: Router, shutdown: impl Future<Output = ()>) {
    let (permits, connections, stop) =
        (Arc::new(Semaphore::new(CONNECTIONS)), TaskTracker::new(), CancellationToken::new());
    let taking = async {
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let answering = answer(stream, peer, router.clone(), stop.clone());
                    connections.spawn(async move {
                        answering.await;
                        drop(permit);
                    });
                }
                // Out of files, mostly: connections that end give some back.
                Err(error) => {
                    tracing::warn!(%error, "HTTP: a connection was not taken");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    tokio::select! {
        () = taking => {}
        () = shutdown => {}
    }
    stop.cancel();
    connections.close();
    connections.wait().await;
}

/// Answers the requests of a connection.
pub(crate) async fn answer(
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    peer: SocketAddr,
    router: Router,
    stop: CancellationToken,
) {
    let answers = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request.map(Body::new))
    });
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE));
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(HEAD_SIZE)
            .serve_connection(TokioIo::new(Box::pin(stream)), answers)
    );
    let done = tokio::select! {
        done = connection.as_mut() => done,
        () = async { tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(KEPT) => {} } } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = done {
        tracing::debug!(%error, %peer, "HTTP");
    }
}
