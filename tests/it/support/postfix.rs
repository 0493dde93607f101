//! A Postfix of its own that hands everything to one relay.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::net;
use super::peer::{self, Running, run_with_input};

pub struct Postfix {
    base: PathBuf,
    conf: String,
    _running: Running,
}

impl Postfix {
    /// Under `folder`, on a machine of its own where `within` names one. `logins` is the map of passwords, `more` goes
    /// behind the usual settings. `None`, said aloud, where it cannot run.
    pub fn start(folder: &Path, within: Option<&str>, relay: &str, logins: &str, more: &str) -> Option<Self> {
        let postfix = peer::find("postfix")?;
        let base = folder.join("postfix");
        for part in ["conf", "spool", "data"] {
            fs::create_dir_all(base.join(part)).unwrap();
        }
        let conf = base.join("conf");
        fs::write(conf.join("sasl"), logins).unwrap();
        fs::write(conf.join("main.cf"), settings(&base, relay) + more).unwrap();
        fs::write(conf.join("master.cf"), MASTER).unwrap();
        if !Command::new("chown").args(["-R", "postfix"]).arg(base.join("data")).status().unwrap().success() {
            println!("skipped: only root can run a Postfix");
            return None;
        }
        Command::new("chmod").args(["-R", "a+rX"]).arg(folder).status().unwrap();
        let conf = conf.display().to_string();
        let checked = Command::new(&postfix).args(["-c", &conf, "check"]).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        let child = net::command(within, "/usr/lib/postfix/sbin/master")
            .args(["-c", &conf, "-s", "-d"])
            .env("MAIL_CONFIG", &conf)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self { base, conf, _running: Running(child) })
    }

    /// A message with LF line ends, as programs hand it over.
    pub fn send(&self, from: &str, to: &str, mail: &str) {
        let mut command = Command::new(peer::find("sendmail").unwrap());
        command.args(["-C", &self.conf, "-f", from, "-i", to]).env("MAIL_CONFIG", &self.conf);
        run_with_input(&mut command, mail);
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.base.join("log")).unwrap_or_default()
    }
}

fn settings(base: &Path, relay: &str) -> String {
    format!(
        "compatibility_level = 3.6\nqueue_directory = {base}/spool\ndata_directory = {base}/data\nmyhostname = client.test\nmydestination =\n\
         maillog_file = {base}/log\nmaillog_file_prefixes = {base}\ninet_interfaces = loopback-only\ninet_protocols = ipv4\nrelayhost = {relay}\n\
         smtp_sasl_auth_enable = yes\nsmtp_sasl_password_maps = texthash:{base}/conf/sasl\nsmtp_sasl_security_options = noanonymous\n\
         smtp_sasl_tls_security_options = noanonymous\nsmtp_tls_security_level = encrypt\nalias_maps =\nlocal_transport = error:none\n",
        base = base.display()
    )
}

const MASTER: &str = "\
pickup unix n - n 1 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 1 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
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
