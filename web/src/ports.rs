//! Message ports between ranks: each message is one transferred `ArrayBuffer`, so the only copies are those out of and
//! into wasm memory.
//!
//! `onmessage` puts a buffer into the link's inbox and wakes the waiting `recv`; ports preserve order. A dead rank is
//! not detected here: the page watches the workers and terminates all of them (`www/llama3med`).

use js_sys::{Array, ArrayBuffer, Uint8Array};
use llama3med::device::ranks::Peers;
use llama3med::{Error, Result};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Poll, Waker};
use wasm_bindgen::prelude::*;
use web_sys::{MessageChannel, MessageEvent, MessagePort};

/// One rank's links to all other ranks.
pub struct Ports {
    rank: usize,
    links: Vec<Option<Link>>,
}

impl Ports {
    /// `ports` has the port to each other rank, at that rank's index.
    pub fn new(rank: usize, ports: &Array) -> Result<Self> {
        let link = |(to, port): (usize, JsValue)| {
            if to == rank {
                return Ok(None);
            }
            let port = port.dyn_into().map_err(|_| Error::RankLost(format!("no port to rank {to} was given")))?;
            Ok(Some(Link::new(port)))
        };
        Ok(Self { rank, links: ports.iter().enumerate().map(link).collect::<Result<_>>()? })
    }

    fn link(&self, rank: usize) -> Result<&Link> {
        self.links.get(rank).and_then(Option::as_ref).ok_or_else(|| Error::RankLost(format!("there is no rank {rank}")))
    }
}

impl Peers for Ports {
    fn rank(&self) -> usize {
        self.rank
    }
    fn n_ranks(&self) -> usize {
        self.links.len()
    }
    fn send(&self, to: usize, bytes: &[u8]) -> Result<()> {
        self.link(to)?.send(bytes).map_err(|_| Error::RankLost(format!("rank {to} does not accept messages")))
    }
    async fn recv(&self, from: usize) -> Result<Vec<u8>> {
        Ok(Uint8Array::new(&self.link(from)?.recv().await.into()).to_vec())
    }
}

/// Lets the worker process its other messages, such as "stop": posts a message to itself, which arrives after those
/// already queued.
pub struct Turn {
    near: MessagePort,
    far: Link,
}

impl Turn {
    /// Fails only if the browser has no message channels.
    pub fn new() -> Result<Self> {
        let channel = MessageChannel::new().map_err(|_| Error::Unsupported("no message channels".into()))?;
        Ok(Self { near: channel.port1(), far: Link::new(channel.port2()) })
    }

    /// Waits for the next turn of the event loop.
    pub async fn wait(&self) {
        if self.near.post_message(&ArrayBuffer::new(0)).is_ok() {
            self.far.recv().await;
        }
    }
}

struct Link {
    port: MessagePort,
    inbox: Rc<RefCell<Inbox>>,
    _on_message: Closure<dyn FnMut(MessageEvent)>,
}

#[derive(Default)]
struct Inbox {
    messages: VecDeque<ArrayBuffer>,
    waker: Option<Waker>,
}

impl Link {
    fn new(port: MessagePort) -> Self {
        let inbox = Rc::new(RefCell::new(Inbox::default()));
        let filled = Rc::clone(&inbox);
        let on_message = Closure::new(move |event: MessageEvent| {
            let mut inbox = filled.borrow_mut();
            inbox.messages.push_back(event.data().unchecked_into());
            let waker = inbox.waker.take();
            drop(inbox);
            if let Some(waker) = waker {
                waker.wake();
            }
        });
        port.set_onmessage(Some(on_message.as_ref().unchecked_ref()));
        Self { port, inbox, _on_message: on_message }
    }

    fn send(&self, bytes: &[u8]) -> std::result::Result<(), JsValue> {
        let buffer = Uint8Array::from(bytes).buffer();
        self.port.post_message_with_transferable(&buffer, &Array::of1(&buffer))
    }

    async fn recv(&self) -> ArrayBuffer {
        std::future::poll_fn(|context| {
            let mut inbox = self.inbox.borrow_mut();
            if let Some(message) = inbox.messages.pop_front() {
                return Poll::Ready(message);
            }
            inbox.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}
