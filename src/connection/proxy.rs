//! The PROXY protocol, versions 1 and 2: a load balancer says whose connection it brings.
//!
//! Exactly the header is taken off the socket, as what follows may be a TLS handshake.
//! Specification: haproxy's `doc/proxy-protocol.txt`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;

use super::Ends;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, with its CRLF.
const LINE_LENGTH_MAX: usize = 107;
/// Addresses and the extra fields that load balancers send.
const BLOCK_LENGTH_MAX: usize = 4096;

#[derive(thiserror::Error, Debug)]
pub(super) enum ProxyError {
    #[error("no PROXY header")]
    Absent,
    #[error("the PROXY header is malformed")]
    Malformed,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Takes the header; `None` where it brings no client of its own (health checks, local sockets).
pub(super) async fn read(stream: &mut TcpStream) -> Result<Option<Ends>, ProxyError> {
    let mut start = [0; 12];
    stream.read_exact(&mut start).await?;
    if &start == SIGNATURE {
        return read_binary(stream).await;
    }
    if !start.starts_with(b"PROXY ") {
        return Err(ProxyError::Absent);
    }
    let mut line = start.to_vec();
    while !line.ends_with(b"\n") {
        let room = LINE_LENGTH_MAX.saturating_sub(line.len());
        if room == 0 {
            return Err(ProxyError::Malformed);
        }
        let mut ahead = [0; LINE_LENGTH_MAX];
        let seen = stream.peek(&mut ahead[..room]).await?;
        // Up to the line's end all that was seen belongs to the header.
        let ours = ahead[..seen].iter().position(|&octet| octet == b'\n').map_or(seen, |at| at + 1);
        if ours == 0 {
            return Err(ProxyError::Malformed);
        }
        stream.read_exact(&mut ahead[..ours]).await?;
        line.extend_from_slice(&ahead[..ours]);
    }
    parse_line(&line)
}

/// Version 1: `PROXY TCP4 client local client-port local-port CRLF`.
fn parse_line(line: &[u8]) -> Result<Option<Ends>, ProxyError> {
    let text = line.strip_suffix(b"\r\n").and_then(|line| std::str::from_utf8(line).ok());
    let words: Vec<_> = text.ok_or(ProxyError::Malformed)?.split(' ').collect();
    let ends = match words[..] {
        ["PROXY", "UNKNOWN", ..] => return Ok(None),
        ["PROXY", family @ ("TCP4" | "TCP6"), client, local, client_port, port] => {
            text_ends(family, client, local, client_port, port)
        }
        _ => None,
    };
    ends.map(Some).ok_or(ProxyError::Malformed)
}

fn text_ends(family: &str, client: &str, local: &str, client_port: &str, port: &str) -> Option<Ends> {
    let (client, local) = (client.parse::<IpAddr>().ok()?, local.parse::<IpAddr>().ok()?);
    let v4 = family == "TCP4";
    client_port.parse::<u16>().ok()?;
    (client.is_ipv4() == v4 && local.is_ipv4() == v4)
        .then(|| Some(Ends { client, local: SocketAddr::new(local, port.parse().ok()?) }))?
}

/// Version 2, behind its signature: version and command, family, length, addresses.
async fn read_binary(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Ends>, ProxyError> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    if length > BLOCK_LENGTH_MAX {
        return Err(ProxyError::Malformed);
    }
    let mut block = vec![0; length];
    stream.read_exact(&mut block).await?;
    parse_block(head[0], head[1], &block)
}

fn parse_block(version_command: u8, family: u8, block: &[u8]) -> Result<Option<Ends>, ProxyError> {
    let ends = match (version_command, family) {
        // LOCAL: the load balancer itself, whatever family it names.
        (0x20, _) => return Ok(None),
        // UNSPEC, and stream or datagram of a local socket.
        (0x21, 0x00 | 0x31 | 0x32) => return Ok(None),
        (0x21, 0x11) => v4_ends(block),
        (0x21, 0x21) => v6_ends(block),
        _ => None,
    };
    ends.map(Some).ok_or(ProxyError::Malformed)
}

fn v4_ends(block: &[u8]) -> Option<Ends> {
    let address = |at: usize| block.get(at..at + 4)?.try_into().ok().map(|octets: [u8; 4]| Ipv4Addr::from(octets));
    Some(Ends { client: address(0)?.into(), local: SocketAddr::new(address(4)?.into(), port(block, 10)?) })
}

fn v6_ends(block: &[u8]) -> Option<Ends> {
    let address = |at: usize| block.get(at..at + 16)?.try_into().ok().map(|octets: [u8; 16]| Ipv6Addr::from(octets));
    Some(Ends { client: address(0)?.into(), local: SocketAddr::new(address(16)?.into(), port(block, 34)?) })
}

fn port(block: &[u8], at: usize) -> Option<u16> {
    block.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// What is read of `octets`, and what is left on the socket.
    async fn read_of(octets: &[u8]) -> (Result<Option<Ends>, ProxyError>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        client.write_all(octets).await.unwrap();
        client.shutdown().await.unwrap();
        let result = read(&mut server).await;
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();
        (result, rest)
    }

    fn binary(head: [u8; 2], block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &head, &length, block, b"rest"].concat()
    }

    fn ends(client: &str, local: &str) -> Option<Ends> {
        Some(Ends { client: client.parse().unwrap(), local: local.parse().unwrap() })
    }

    #[tokio::test]
    async fn text_headers_are_taken_exactly() {
        let (given, rest) = read_of(b"PROXY TCP4 192.0.2.1 198.51.100.2 40000 587\r\nrest\n").await;
        assert_eq!((given.unwrap(), &rest[..]), (ends("192.0.2.1", "198.51.100.2:587"), &b"rest\n"[..]));
        let (given, _) = read_of(b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n").await;
        assert_eq!(given.unwrap(), ends("2001:db8::1", "[2001:db8::2]:2"));
        let (given, rest) = read_of(b"PROXY UNKNOWN\r\nrest").await;
        assert_eq!((given.unwrap(), &rest[..]), (None, &b"rest"[..]));
    }

    #[tokio::test]
    async fn binary_headers_are_taken_exactly() {
        let v4 = [192, 0, 2, 1, 198, 51, 100, 2, 156, 64, 2, 75];
        let (given, rest) = read_of(&binary([0x21, 0x11], &v4)).await;
        assert_eq!((given.unwrap(), &rest[..]), (ends("192.0.2.1", "198.51.100.2:587"), &b"rest"[..]));
        let mut v6 = [0; 36];
        (v6[15], v6[31], v6[35]) = (1, 2, 9);
        let with_extras = [&v6[..], &[4, 0, 1, 0]].concat();
        assert_eq!(read_of(&binary([0x21, 0x21], &with_extras)).await.0.unwrap(), ends("::1", "[::2]:9"));
        for (head, block) in
            [([0x20, 0x00], &[][..]), ([0x20, 0x11], &v4), ([0x21, 0x00], &[1, 2]), ([0x21, 0x31], &[0; 216])]
        {
            assert_eq!(read_of(&binary(head, block)).await.0.unwrap(), None, "{head:?}");
        }
    }

    #[tokio::test]
    async fn other_starts_are_refused() {
        let long = [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat();
        for octets in [
            &b"EHLO client.test\r\n"[..],
            b"PROXY TCP4 192.0.2.1 198.51.100.2 40000\r\n",
            b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.2 40000 99999\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.2 40000 587\n",
            b"PROXY TCP4 192.0.2.1",
            b"PROXY",
            &long,
            &binary([0x31, 0x11], &[0; 12]),
            &binary([0x21, 0x11], &[0; 11]),
            &binary([0x21, 0x12], &[0; 12]),
            &binary([0x21, 0x11], &[0; BLOCK_LENGTH_MAX + 1]),
        ] {
            assert!(read_of(octets).await.0.is_err(), "{octets:?}");
        }
    }
}
