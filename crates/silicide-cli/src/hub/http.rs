//! Requests to the hub: redirects, the token and deadlines.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, Response, Uri, header};
use ureq::{Agent, Body, RequestBuilder, Timeout, typestate::WithoutBody};

use super::error::Error;

/// How long the hub may take.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// The first request, name lookup to last byte: what an unreachable hub costs. A host that the hub sends us to has as long for
    /// its first answer.
    pub probe: Duration,
    /// A connection to a host that has answered before, or the head of its answer.
    pub answer: Duration,
    /// Silence in the middle of a download.
    pub silence: Duration,
    /// The pause before a broken download is taken up again; doubled each time.
    pub retry: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            probe: Duration::from_millis(4500),
            answer: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            retry: Duration::from_secs(1),
        }
    }
}

/// An answer, after redirects.
pub(super) type Answer = Response<Body>;

pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    timeouts: Timeouts,
    /// The origins that have answered.
    reached: Mutex<HashSet<String>>,
}

/// A chain of redirects longer than this leads nowhere.
const MAX_REDIRECTS: usize = 8;

impl Client {
    pub(super) fn new(endpoint: &str, token: Option<String>, timeouts: Timeouts) -> Self {
        let config = Agent::config_builder()
            // Redirects are followed here, where the token can be kept from other hosts.
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("silicide/", env!("CARGO_PKG_VERSION")))
            // A name lookup has a deadline of its own only where one is set.
            .timeout_resolve(Some(timeouts.answer))
            .timeout_connect(Some(timeouts.answer))
            .timeout_recv_response(Some(timeouts.answer))
            .timeout_per_read(Some(timeouts.silence))
            .build();
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Self { agent: config.new_agent(), endpoint, token, timeouts, reached: Mutex::default() }
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    pub(super) fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// A small document, whole, within the probe's deadline.
    pub(super) fn get_text(&self, url: &str) -> Result<(Answer, String), Error> {
        let begun = Instant::now();
        let mut answer = self.follow(url, |url| {
            let left = self.timeouts.probe.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
            self.agent.get(url).config().timeout_global(Some(left)).build().header(header::ACCEPT_ENCODING, "identity")
        })?;
        let text = answer.body_mut().read_to_string().map_err(|e| unreachable(&self.endpoint, &e))?;
        Ok((answer, text))
    }

    /// A file, from byte `start` on.
    pub(super) fn get_from(&self, url: &str, start: u64) -> Result<Answer, Error> {
        self.follow(url, |url| {
            let request = self.agent.get(url).header(header::ACCEPT_ENCODING, "identity");
            if start > 0 { request.header(header::RANGE, format!("bytes={start}-")) } else { request }
        })
    }

    /// What the hub says of a file: the first answer that is not a redirect within the hub.
    pub(super) fn head(&self, url: &str) -> Result<Answer, Error> {
        let mut url = url.to_owned();
        for _ in 0..MAX_REDIRECTS {
            let request = self.hurry(self.agent.head(&url).header(header::ACCEPT_ENCODING, "identity"));
            let answer = self.call(request, &url)?;
            match redirect(&answer, &url)? {
                Some(next) if self.is_hub(&next) && !answer.headers().contains_key("x-linked-etag") => url = next,
                _ => return Ok(answer),
            }
        }
        Err(too_many(&url))
    }

    fn follow(&self, url: &str, request: impl Fn(&str) -> RequestBuilder<WithoutBody>) -> Result<Answer, Error> {
        let mut url = url.to_owned();
        for _ in 0..MAX_REDIRECTS {
            let answer = self.call(request(&url), &url)?;
            match redirect(&answer, &url)? {
                Some(next) => url = next,
                None => return Ok(answer),
            }
        }
        Err(too_many(&url))
    }

    fn call(&self, request: RequestBuilder<WithoutBody>, url: &str) -> Result<Answer, Error> {
        let request = match &self.token {
            Some(token) if self.is_hub(url) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
            _ => request,
        };
        let origin = origin(url);
        let known = self.has_reached(origin);
        let request = if known { request } else { self.hurry(request) };
        let answer = request.call().map_err(|e| unreachable(origin, &e))?;
        if !known {
            self.reached.lock().unwrap_or_else(PoisonError::into_inner).insert(origin.to_owned());
        }
        Ok(answer)
    }

    /// Whether a host has ever answered: what it does now may pass then.
    pub(super) fn has_reached(&self, origin: &str) -> bool {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner).contains(origin)
    }

    /// Gives a host that may never answer, or a short answer, no more time than the hub has at first.
    fn hurry(&self, request: RequestBuilder<WithoutBody>) -> RequestBuilder<WithoutBody> {
        let longest = Some(self.timeouts.probe.min(self.timeouts.answer));
        request.config().timeout_resolve(longest).timeout_connect(longest).timeout_recv_response(longest).build()
    }

    /// Whether a URL is served by the hub itself: same scheme, host and port.
    fn is_hub(&self, url: &str) -> bool {
        let origin = |url: &str| url.parse::<Uri>().ok().map(|uri| (uri.scheme().cloned(), uri.authority().cloned()));
        origin(url).is_some_and(|it| Some(it) == origin(&self.endpoint))
    }
}

fn unreachable(endpoint: &str, error: &ureq::Error) -> Error {
    Error::Unreachable { endpoint: endpoint.to_owned(), reason: reason(error) }
}

/// Scheme, host and port: a URL without its path.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |i| i + 3);
    url[host..].find('/').map_or(url, |end| &url[..host + end])
}

/// What went wrong, in words that a user knows.
pub(super) fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(Timeout::Resolve) => "the name lookup takes too long".into(),
        ureq::Error::Timeout(_) => "no answer in time".into(),
        ureq::Error::HostNotFound => "the name is not known".into(),
        ureq::Error::Io(e) => e.to_string(),
        other => other.to_string(),
    }
}

/// A header as text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Where an answer sends us.
fn redirect(answer: &Answer, url: &str) -> Result<Option<String>, Error> {
    if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let bad = |reason: &str| Error::Protocol { url: url.to_owned(), reason: reason.to_owned() };
    let location = text(answer.headers(), "location").ok_or_else(|| bad("a redirect that does not say where to"))?;
    let next = match location.strip_prefix('/') {
        Some(path) if !path.starts_with('/') => format!("{}/{path}", origin(url)),
        _ => location.to_owned(),
    };
    if next.starts_with("https://") || (next.starts_with("http://") && url.starts_with("http://")) {
        Ok(Some(next))
    } else {
        Err(bad("a redirect to an address that is not https"))
    }
}

fn too_many(url: &str) -> Error {
    Error::Protocol { url: url.to_owned(), reason: "too many redirects".into() }
}
