//! A listening socket that can refuse and listen again.

use std::io;
use std::net::{Shutdown, SocketAddr};

use socket2::{Domain, Protocol, Type};
use tokio::net::TcpListener;

const BACKLOG: i32 = 4096;

pub(super) struct Socket {
    socket: socket2::Socket,
    address: SocketAddr,
}

impl Socket {
    /// Binds and listens. An error names the address.
    pub(super) fn bind(address: SocketAddr) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
        // A port that the system chose is lost with the first `shutdown`; one that was asked for is kept.
        let chosen = if address.port() == 0 { Some(new_bound(address).map_err(named)?) } else { None };
        let address = match &chosen {
            Some(socket) => local_address(socket).map_err(named)?,
            None => address,
        };
        let socket = new_bound(address).map_err(named)?;
        drop(chosen);
        socket.listen(BACKLOG).map_err(named)?;
        Ok(Self { socket, address })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections are refused, those that nobody accepted yet are reset.
    pub(super) fn refuse(&self) -> io::Result<()> {
        match self.socket.shutdown(Shutdown::Read) {
            // It refuses already.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result,
        }
    }

    pub(super) fn listen(&self) -> io::Result<()> {
        self.socket.listen(BACKLOG)
    }

    /// A fresh registration with the runtime.
    pub(super) fn acceptor(&self) -> io::Result<TcpListener> {
        TcpListener::from_std(self.socket.try_clone()?.into())
    }
}

fn new_bound(address: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn local_address(socket: &socket2::Socket) -> io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn refuses_and_listens_again_on_the_same_port() {
        let socket = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.address();
        for _ in 0..3 {
            let acceptor = socket.acceptor().unwrap();
            let (client, accepted) = tokio::join!(TcpStream::connect(address), acceptor.accept());
            assert_eq!(client.unwrap().local_addr().unwrap(), accepted.unwrap().1);
            socket.refuse().unwrap();
            socket.refuse().unwrap();
            let refused = TcpStream::connect(address).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
            drop(acceptor);
            socket.listen().unwrap();
        }
    }

    #[test]
    fn a_port_in_use_is_named() {
        let socket = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let error = Socket::bind(socket.address()).err().unwrap();
        assert!(error.to_string().contains(&socket.address().to_string()), "{error}");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
