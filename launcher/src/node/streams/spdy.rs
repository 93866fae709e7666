//! The frames of SPDY/3.1, as far as Kubernetes uses them: streams that the client opens, data, and little else. There
//! is no flow control: who cannot take more does not read on.

use bytes::{BufMut, Bytes, BytesMut};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use std::collections::BTreeMap;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Control frames carry a few headers; none is larger.
const MAX_CONTROL: usize = 16 * 1024;
/// What the headers of one frame may grow to.
const MAX_HEADERS: usize = 16 * 1024;
/// What is handed on at once of a data frame, which may have up to 16 MiB.
const CHUNK: usize = 32 * 1024;
const VERSION: u16 = 3;
const FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

pub(super) type Headers = BTreeMap<String, String>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Open {
        stream: u32,
        headers: Headers,
    },
    Data {
        stream: u32,
        bytes: Bytes,
    },
    /// The client sends no more on this stream.
    End {
        stream: u32,
    },
    /// The client has given the stream up.
    Reset {
        stream: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
}

/// Reads frames; after an error nothing more can be read.
pub(super) struct Reader<R> {
    from: R,
    inflater: Inflater,
    /// Of the data frame that is being read: its stream, what is left of it, whether it is the stream's last.
    inside: Option<(u32, usize, bool)>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(from: R) -> Self {
        Reader { from, inflater: Inflater::new(), inside: None }
    }

    /// `None` where the connection ends between two frames.
    pub(super) async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.data().await? {
                return Ok(Some(frame));
            }
            let mut head = [0u8; 8];
            if self.from.read(&mut head[..1]).await? == 0 {
                return Ok(None);
            }
            self.from.read_exact(&mut head[1..]).await?;
            let [a, b, c, d, flags, rest @ ..] = head;
            let length = usize::try_from(u32::from_be_bytes([0, rest[0], rest[1], rest[2]])).unwrap_or(usize::MAX);
            let word = u32::from_be_bytes([a, b, c, d]);
            if word & 0x8000_0000 == 0 {
                self.inside = Some((word, length, flags & FIN != 0));
                continue;
            }
            let version = u16::from_be_bytes([a & 0x7f, b]);
            if version != VERSION || length > MAX_CONTROL {
                return Err(invalid("not a control frame of SPDY/3.1, or too large a one"));
            }
            let mut body = vec![0; length];
            self.from.read_exact(&mut body).await?;
            if let Some(frame) = self.control(u16::from_be_bytes([c, d]), flags, &body)? {
                return Ok(Some(frame));
            }
        }
    }

    async fn data(&mut self) -> io::Result<Option<Frame>> {
        match self.inside {
            None => Ok(None),
            Some((stream, 0, last)) => {
                self.inside = None;
                Ok(last.then_some(Frame::End { stream }))
            }
            Some((stream, left, last)) => {
                let mut bytes = BytesMut::zeroed(left.min(CHUNK));
                self.from.read_exact(&mut bytes).await?;
                self.inside = Some((stream, left - bytes.len(), last));
                Ok(Some(Frame::Data { stream, bytes: bytes.freeze() }))
            }
        }
    }

    fn control(&mut self, kind: u16, flags: u8, body: &[u8]) -> io::Result<Option<Frame>> {
        let word = |at: usize| -> io::Result<u32> {
            let bytes = body.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
            bytes.map(u32::from_be_bytes).ok_or_else(|| invalid("a control frame is cut short"))
        };
        Ok(match kind {
            SYN_STREAM => {
                let stream = word(0)? & 0x7fff_ffff;
                let block = body.get(10..).ok_or_else(|| invalid("a control frame is cut short"))?;
                let headers = self.inflater.headers(block)?;
                if flags & FIN != 0 {
                    self.inside = Some((stream, 0, true));
                }
                Some(Frame::Open { stream, headers })
            }
            RST_STREAM => Some(Frame::Reset { stream: word(0)? & 0x7fff_ffff }),
            PING => Some(Frame::Ping { id: word(0)? }),
            GOAWAY => Some(Frame::GoAway),
            // It would change the state of the compression.
            SYN_REPLY | HEADERS => return Err(invalid("a frame that no client of Kubernetes sends")),
            // Settings, windows: nothing that changes anything here.
            _ => None,
        })
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// The client's headers, one zlib stream over all frames, begun with a dictionary.
struct Inflater {
    state: Box<DecompressorOxide>,
    /// The last 32 KiB, which the stream refers back to.
    window: Box<[u8]>,
    at: usize,
    begun: bool,
}

impl Inflater {
    fn new() -> Self {
        let mut window = vec![0; 32 * 1024].into_boxed_slice();
        let dictionary = dictionary();
        window[..dictionary.len()].copy_from_slice(&dictionary);
        Inflater { state: Box::default(), window, at: dictionary.len(), begun: false }
    }

    fn headers(&mut self, mut block: &[u8]) -> io::Result<Headers> {
        if !self.begun {
            // Deflate with a dictionary, and which one.
            block = match block {
                [method, flags, id @ ..] if method & 0x0f == 8 && flags & 0x20 != 0 => {
                    id.strip_prefix(&DICTIONARY_ID).ok_or_else(|| invalid("headers with another dictionary"))?
                }
                _ => return Err(invalid("headers that are not compressed as SPDY/3.1 has it")),
            };
            self.begun = true;
        }
        let mut plain = Vec::new();
        loop {
            let (status, read, wrote) =
                decompress(&mut self.state, block, &mut self.window, self.at, TINFL_FLAG_HAS_MORE_INPUT);
            plain.extend_from_slice(&self.window[self.at..self.at + wrote]);
            self.at = (self.at + wrote) % self.window.len();
            block = &block[read..];
            match status {
                _ if plain.len() > MAX_HEADERS => return Err(invalid("headers of more than 16 KiB")),
                TINFLStatus::NeedsMoreInput => return parse(&plain),
                TINFLStatus::HasMoreOutput => {}
                _ => return Err(invalid("headers that cannot be decompressed")),
            }
        }
    }
}

fn parse(mut plain: &[u8]) -> io::Result<Headers> {
    fn number(plain: &mut &[u8]) -> io::Result<usize> {
        let (bytes, rest) = plain.split_first_chunk().ok_or_else(|| invalid("headers are cut short"))?;
        *plain = rest;
        usize::try_from(u32::from_be_bytes(*bytes)).map_err(io::Error::other)
    }
    fn text(plain: &mut &[u8]) -> io::Result<String> {
        let length = number(plain)?;
        let (bytes, rest) = plain.split_at_checked(length).ok_or_else(|| invalid("headers are cut short"))?;
        *plain = rest;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }
    let mut headers = Headers::new();
    for _ in 0..number(&mut plain)? {
        headers.insert(text(&mut plain)?.to_ascii_lowercase(), text(&mut plain)?);
    }
    Ok(headers)
}

/// Adler-32 of the dictionary.
const DICTIONARY_ID: [u8; 4] = [0xe3, 0xc6, 0xa7, 0xc2];

/// What the compression of headers begins with: words after their lengths, then text.
fn dictionary() -> Vec<u8> {
    const WORDS: &str = "options,head,post,put,delete,trace,accept,accept-charset,accept-encoding,accept-language,\
        accept-ranges,age,allow,authorization,cache-control,connection,content-base,content-encoding,\
        content-language,content-length,content-location,content-md5,content-range,content-type,date,etag,expect,\
        expires,from,host,if-match,if-modified-since,if-none-match,if-range,if-unmodified-since,last-modified,\
        location,max-forwards,pragma,proxy-authenticate,proxy-authorization,range,referer,retry-after,server,te,\
        trailer,transfer-encoding,upgrade,user-agent,vary,via,warning,www-authenticate,method,get,status,200 OK,\
        version,HTTP/1.1,url,public,set-cookie,keep-alive,origin";
    const TEXT: &str = "1001012012022052063003023033043053063074024054064074084094104114124134144154164175025045052\
        03 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 \
        Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr \
        May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,\
        image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
        publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut bytes = Vec::new();
    for word in WORDS.split(',') {
        bytes.put_u32(word.len().try_into().unwrap_or(u32::MAX));
        bytes.put_slice(word.as_bytes());
    }
    bytes.put_slice(TEXT.as_bytes());
    bytes
}

fn control(kind: u16, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u16(0x8000 | VERSION);
    frame.put_u16(kind);
    frame.put_u32(body.len().try_into().unwrap_or(u32::MAX));
    frame.put_slice(body);
    frame.freeze()
}

/// Accepts a stream, with no headers. They are compressed like the client's, all in one zlib stream: its beginning
/// comes with the first reply.
pub(super) fn reply(stream: u32, first: bool) -> Bytes {
    let mut body = stream.to_be_bytes().to_vec();
    if first {
        body.extend_from_slice(&[0x78, 0x01]);
    }
    // Two stored blocks: the number of headers, and nothing, which ends what the reader waits for.
    body.extend_from_slice(&[0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
    control(SYN_REPLY, &body)
}

/// Refuses a stream, or gives it up.
pub(super) fn reset(stream: u32) -> Bytes {
    const REFUSED_STREAM: u32 = 3;
    control(RST_STREAM, &[stream.to_be_bytes(), REFUSED_STREAM.to_be_bytes()].concat())
}

pub(super) fn ping(id: u32) -> Bytes {
    control(PING, &id.to_be_bytes())
}

/// Data is what is read at once, so far below the 16 MiB that a frame may have.
pub(super) fn data(stream: u32, bytes: &[u8], last: bool) -> Bytes {
    let mut frame = BytesMut::with_capacity(bytes.len() + 8);
    frame.put_u32(stream);
    let flags = if last { u32::from(FIN) << 24 } else { 0 };
    frame.put_u32(flags | u32::try_from(bytes.len()).unwrap_or(u32::MAX) & 0x00ff_ffff);
    frame.put_slice(bytes);
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The headers of two streams, one after the other, as zlib compresses them with the dictionary.
    const ERROR_STREAM: &str =
        "78bbe3c6a7c202253a703a2b294a4dcc851625aca9a0808614cb45e01c6061606100a4398b20d198094ade8c0600000000ffff";
    const DATA_STREAM: &str = "c2aa19540e2512d60b000000ffff";

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
    }

    fn open(stream: u32, block: &[u8]) -> Vec<u8> {
        control(SYN_STREAM, &[&stream.to_be_bytes()[..], &[0; 6], block].concat()).to_vec()
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<Frame>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let (mut reader, mut frames) = (Reader::new(bytes), Vec::new());
            while let Some(frame) = reader.next().await? {
                frames.push(frame);
            }
            Ok(frames)
        })
    }

    #[test]
    fn frames_are_read_as_a_client_writes_them() {
        let headers = |kind: &str| {
            let pairs = [("streamtype", kind), ("port", "8080"), ("requestid", "0")];
            pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
        };
        let large = vec![7; CHUNK + 1];
        let written = [
            &open(1, &bytes(ERROR_STREAM))[..],
            &data(1, b"", true),
            &open(3, &bytes(DATA_STREAM)),
            &data(3, &large, true),
            &ping(5),
            &control(4, &[0; 4]),
            &reset(3),
            &control(GOAWAY, &[0; 8]),
        ]
        .concat();
        let chunk = |bytes: &[u8]| Frame::Data { stream: 3, bytes: Bytes::copy_from_slice(bytes) };
        let want = [
            Frame::Open { stream: 1, headers: headers("error") },
            Frame::End { stream: 1 },
            Frame::Open { stream: 3, headers: headers("data") },
            chunk(&large[..CHUNK]),
            chunk(&large[CHUNK..]),
            Frame::End { stream: 3 },
            Frame::Ping { id: 5 },
            Frame::Reset { stream: 3 },
            Frame::GoAway,
        ];
        assert_eq!(read(&written).expect("frames"), want);
        // Cut anywhere but between frames, it is an error and no frame that was not sent.
        for end in 0..written.len() {
            if let Ok(frames) = read(&written[..end]) {
                assert!(want.starts_with(&frames), "{end}: {frames:?}");
            }
        }
    }

    #[test]
    fn what_is_too_large_or_not_spdy_is_an_error() {
        // 4 MiB of zeroes, which compress to little.
        let bomb = miniz_oxide_bomb();
        for bad in [
            b"GET / HTTP/1.1\r\n\r\n\xff\xff\xff\xff\xff\xff".to_vec(),
            control(SYN_STREAM, &vec![0; MAX_CONTROL + 1]).to_vec(),
            control(SYN_STREAM, &[0; 9]).to_vec(),
            control(HEADERS, &[0; 9]).to_vec(),
            open(1, b""),
            open(1, b"\x78\x01plain"),
            open(1, b"\x78\xbb\x00\x00\x00\x01"),
            open(1, &bytes(DATA_STREAM)),
            open(1, &bomb),
        ] {
            assert!(read(&bad).is_err(), "{:?}", &bad[..bad.len().min(40)]);
        }
    }

    fn miniz_oxide_bomb() -> Vec<u8> {
        // A block of fixed codes (BTYPE 01): one literal zero, then matches of 258 bytes at distance 1, and no end.
        let mut bits: Vec<bool> = vec![false, true, false];
        bits.extend("00110000".chars().map(|bit| bit == '1'));
        for _ in 0..4096 {
            bits.extend("1100010100000".chars().map(|bit| bit == '1'));
        }
        let mut packed = [&[0x78, 0xbb][..], &DICTIONARY_ID].concat();
        packed.extend(bits.chunks(8).map(|byte| byte.iter().rev().fold(0, |sum, bit| sum << 1 | u8::from(*bit))));
        packed
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_frames_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = read(&bytes);
        }

        #[test]
        fn any_headers_end_in_headers_or_an_error(tail in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = read(&open(1, &[&[0x78, 0xbb][..], &DICTIONARY_ID, &tail].concat()));
            let _ = parse(&tail);
        }
    }
}
