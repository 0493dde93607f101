//! An Exim of its own that hands everything to one smarthost.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::net;
use super::peer::{self, run_with_input};

pub struct Exim {
    exim: PathBuf,
    base: PathBuf,
    file: PathBuf,
    within: Option<String>,
}

impl Exim {
    /// Under `folder`, on a machine of its own where `within` names one. `logins` has a line `sender: password` for each.
    /// `None`, said aloud, where it cannot run.
    pub fn start(folder: &Path, within: Option<&str>, host: &str, port: u16, logins: &str) -> Option<Self> {
        let exim = peer::find("exim4")?;
        let (base, file) = (folder.join("exim"), folder.join("exim.conf"));
        fs::create_dir_all(&base).unwrap();
        fs::write(base.join("passwd"), logins).unwrap();
        // Debian's Exim never delivers as root.
        if !Command::new("chown").args(["-R", "mail:mail"]).arg(&base).status().unwrap().success() {
            println!("skipped: only root can run an Exim");
            return None;
        }
        Command::new("chmod").args(["-R", "a+rX"]).arg(folder).status().unwrap();
        fs::write(&file, configuration(&exim, &base, host, port)).unwrap();
        Command::new("chmod").arg("644").arg(&file).status().unwrap();
        Some(Self { exim, base, file, within: within.map(str::to_owned) })
    }

    /// A message with LF line ends, as programs hand it over; `how` says when it is to be delivered.
    pub fn send(&self, how: &[&str], from: &str, to: &str, mail: &str) {
        run_with_input(self.command().args(how).args(["-i", "-f", from, to]), mail);
    }

    /// Tries everything in the queue, whenever it was tried last.
    pub fn flush(&self) {
        self.command().arg("-qf").output().unwrap();
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.base.join("mainlog")).unwrap_or_default()
    }

    fn command(&self) -> Command {
        let mut command = net::command(self.within.as_deref(), self.exim.to_str().unwrap());
        command.arg("-C").arg(&self.file);
        command
    }
}

fn configuration(exim: &Path, base: &Path, host: &str, port: u16) -> String {
    format!(
        "primary_hostname = client.test\nexim_path = {exim}\ndeliver_drop_privilege = true\nexim_user = mail\nexim_group = mail\nspool_directory = {base}/spool\nlog_file_path = {base}/%slog\ntls_advertise_hosts =\nkeep_environment =\ntrusted_users = root\n\
         begin routers\nsmart:\n driver = manualroute\n transport = smarthost\n route_list = * {host} byname\n self = send\n\
         begin transports\nsmarthost:\n driver = smtp\n port = {port}\n connect_timeout = 3s\n command_timeout = 5s\n data_timeout = 5s\n final_timeout = 10s\n hosts_require_auth = *\n hosts_require_tls = *\n tls_verify_certificates =\n\
         begin authenticators\nplain:\n driver = plaintext\n public_name = PLAIN\n client_send = ^${{lookup{{$sender_address}}lsearch{{{base}/passwd}}{{$sender_address^$value}}}}\n\
         begin retry\n* * F,1h,1s\n",
        exim = exim.display(),
        base = base.display()
    )
}
