//! A frame: `length u32 | number u64 | body`, little-endian; the length counts number and body.
//!
//! The number ties an answer to its question: a caller may give up while its question is on its way.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A log entry of the largest command, with its surroundings.
pub(crate) const BYTES_MAX: usize = 20 * 1024 * 1024;
/// What a stranger may say.
pub(crate) const GREETING_BYTES_MAX: usize = 16 * 1024;
const NUMBER_BYTES: usize = 8;

pub(crate) struct Frame {
    pub(crate) number: u64,
    pub(crate) body: Vec<u8>,
}

/// `None` at the end of the stream between two frames.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin), bytes_max: usize) -> io::Result<Option<Frame>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if !(NUMBER_BYTES..=bytes_max + NUMBER_BYTES).contains(&length) {
        let what = format!("a frame of {length} bytes, {bytes_max} are allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let number = stream.read_u64_le().await?;
    let mut body = Vec::new();
    // Grows with what comes: a length alone must not take memory.
    stream.take((length - NUMBER_BYTES) as u64).read_to_end(&mut body).await?;
    if body.len() < length - NUMBER_BYTES {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(Frame { number, body }))
}

/// Does not flush.
pub(crate) async fn write(stream: &mut (impl AsyncWrite + Unpin), number: u64, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len() + NUMBER_BYTES).map_err(io::Error::other)?;
    stream.write_all(&length.to_le_bytes()).await?;
    stream.write_all(&number.to_le_bytes()).await?;
    stream.write_all(body).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    async fn framed(bodies: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, body) in (0..).zip(bodies) {
            write(&mut bytes, number, body).await.unwrap();
        }
        bytes
    }

    #[tokio::test]
    async fn frames_come_back_and_a_cut_one_is_an_error() {
        let bytes = framed(&[b"first", b"", b"third"]).await;
        let mut stream = bytes.as_slice();
        for expected in [&b"first"[..], b"", b"third"] {
            assert_eq!(read(&mut stream, 5).await.unwrap().unwrap().body, expected);
        }
        assert!(read(&mut stream, 5).await.unwrap().is_none());
        let one = framed(&[b"first"]).await;
        for cut in 4..one.len() {
            assert!(read(&mut &one[..cut], 5).await.is_err(), "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn what_is_too_long_or_too_short_for_a_frame_is_refused() {
        let bytes = framed(&[b"first"]).await;
        assert_eq!(read(&mut bytes.as_slice(), 4).await.err().unwrap().kind(), io::ErrorKind::InvalidData);
        assert!(read(&mut [7, 0, 0, 0, 1].as_slice(), 4).await.is_err());
        assert!(read(&mut [255; 12].as_slice(), BYTES_MAX).await.is_err());
    }
}
