//! Debian's Postfix as a submission server of its own: its own configuration, queue and port.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::Server;
use crate::bench::process;
use crate::machine;

const MASTER: &str = "/usr/lib/postfix/sbin/master";
const LOGIN: &str = "bench@bench.test";
const PASSWORD: &str = "a password for the bench";

/// Postfix itself, and Cyrus SASL with its user database.
pub(super) fn is_installed() -> bool {
    Path::new(MASTER).exists() && Path::new("/usr/sbin/saslpasswd2").exists()
}

/// A fresh instance that relays to `sink`.
pub(super) fn start(sink: SocketAddr) -> Result<Server> {
    let directory = tempfile::tempdir()?;
    let base = directory.path();
    let port = machine::free_port()?;
    for folder in ["conf", "conf/sasl", "spool", "data", "sasl"] {
        fs::create_dir_all(base.join(folder))?;
    }
    write_configuration(base, port, sink)?;
    write_certificate(base)?;
    write_user(base)?;
    run(Command::new("chmod").args(["-R", "a+rX"]).arg(base))?;
    run(Command::new("chown").args(["-R", "postfix"]).arg(base.join("data")).arg(base.join("sasl")))?;
    let conf = base.join("conf").display().to_string();
    run(Command::new("postfix").args(["-c", &conf, "check"]))?;
    let process = Command::new(MASTER)
        .args(["-c", &conf, "-s", "-d"])
        .env("MAIL_CONFIG", &conf)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let (addresses, processes) = (vec![address], vec![process]);
    let server = Server { addresses, user: LOGIN, password: PASSWORD, processes, _directory: directory };
    process::wait_for_port(address)?;
    Ok(server)
}

fn write_configuration(base: &Path, port: u16, sink: SocketAddr) -> Result<()> {
    let text = format!(
        "compatibility_level = 3.6\nqueue_directory = {base}/spool\ndata_directory = {base}/data\nmyhostname = bench.test\nmydestination =\nmynetworks =\n\
         maillog_file = {base}/log\nmaillog_file_prefixes = {base}\ninet_interfaces = loopback-only\ninet_protocols = ipv4\nalias_maps =\nlocal_transport = error:none\n\
         relayhost = [{host}]:{sink_port}\nsmtp_tls_security_level = none\nsmtp_host_lookup = native\n\
         smtpd_tls_security_level = may\nsmtpd_tls_cert_file = {base}/cert.pem\nsmtpd_tls_key_file = {base}/key.pem\nsmtpd_tls_auth_only = yes\n\
         smtpd_sasl_auth_enable = yes\nsmtpd_sasl_type = cyrus\nsmtpd_sasl_path = smtpd\nsmtpd_sasl_local_domain = bench.test\n\
         smtpd_relay_restrictions = permit_sasl_authenticated, reject\nsmtpd_client_connection_count_limit = 0\nsmtpd_client_connection_rate_limit = 0\n\
         default_process_limit = 200\nsmtpd_peername_lookup = no\n",
        base = base.display(),
        host = sink.ip(),
        sink_port = sink.port()
    );
    fs::write(base.join("conf/main.cf"), text)?;
    fs::write(base.join("conf/master.cf"), format!("127.0.0.1:{port} inet n - n - 200 smtpd\n{SERVICES}"))?;
    Ok(())
}

const SERVICES: &str = "\
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
";

fn write_certificate(base: &Path) -> Result<()> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    fs::write(base.join("cert.pem"), made.cert.pem())?;
    fs::write(base.join("key.pem"), made.signing_key.serialize_pem())?;
    Ok(())
}

fn write_user(base: &Path) -> Result<()> {
    let database = base.join("sasl/sasldb2");
    let text = format!(
        "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nmech_list: PLAIN LOGIN\nsasldb_path: {}\n",
        database.display()
    );
    // Debian's Postfix looks for its SASL configuration there.
    fs::write(base.join("conf/sasl/smtpd.conf"), text)?;
    let mut child = Command::new("saslpasswd2")
        .args(["-p", "-c", "-u", "bench.test", "-f"])
        .arg(&database)
        .arg("bench")
        .stdin(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("saslpasswd2 reads the password")?.write_all(PASSWORD.as_bytes())?;
    ensure!(child.wait()?.success(), "saslpasswd2 failed");
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
