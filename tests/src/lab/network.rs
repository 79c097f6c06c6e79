//! The lab's wires. Addresses are the same in every lab: each has network namespaces of its own.
//!
//! ```text
//!   app guests  eth0 ──┐ isolated ports
//!               eth0 ──┤  10.77.1.n
//!                      ├── switch ── eth0  storage guest  admin0 ──── eth0  base domain
//!               eth0 ──┘             10.77.0.1        10.78.0.1       10.78.0.2
//! ```
//!
//! The switch (the keeper's network namespace) lets an app guest's port speak only from its own address and only to the
//! gateway's; the storage guest's own filter admits only the native door from there. The base domain has a wire of its
//! own, with which no app guest shares a segment.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::plan::{Plan, Role};

/// The gateway's native door, on the network that it shares with the app guests.
pub const GATEWAY_ADDRESS: &str = "10.77.0.1:7070";
/// The gateway's admin door, on the network that it shares with the base domain.
pub const ADMIN_ADDRESS: &str = "10.78.0.1:7071";

/// The base domain's enrolment address, on the network of the app guests, in labs that have one.
pub const ENROL_ADDRESS: &str = "10.77.0.2:7072";

pub(super) const GATEWAY_HOST: &str = "10.77.0.1";
const GATEWAY_PORT: u16 = 7070;
pub(super) const APP_NETWORK: &str = "10.77.0.0/16";
pub(super) const APP_INTERFACE: &str = "eth0";
pub(super) const ADMIN_NETWORK: &str = "10.78.0.0/24";
pub(super) const ADMIN_INTERFACE: &str = "admin0";
const ADMIN_HOST: &str = "10.78.0.1";
const ADMIN_PORT: u16 = 7071;
const BASE_HOST: &str = "10.78.0.2";
const ENROL_HOST: &str = "10.77.0.2";
const ENROL_PORT: u16 = 7072;
const ENROL_INTERFACE: &str = "enrol0";

/// How many app guests fit the address plan.
pub(super) const MAX_APPS: usize = 1000;

/// The address of the app guest with number `index`.
pub(super) fn app_address(index: u16) -> Ipv4Addr {
    let [high, low] = (index % 250 + 1 + (index / 250 + 1) * 256).to_be_bytes();
    Ipv4Addr::new(10, 77, high, low)
}

/// Build the switch and run a wire from it to each guest. `pids` are the guests' first processes, as this process
/// numbers them, in the order of the plan.
pub(super) fn wire_up(plan: &Plan, pids: &[i32]) -> Result<()> {
    let mut links =
        String::from("link set lo up\nlink add lab type bridge mcast_snooping 0\nlink set lab up\n");
    let mut guests = Vec::new();
    let storage = find(plan, pids, Role::Storage).context("the plan has no storage guest")?;
    let base = find(plan, pids, Role::Base).context("the plan has no base domain")?;
    writeln!(links, "link add storage type veth peer name {APP_INTERFACE} netns {storage}")?;
    writeln!(links, "link set storage master lab up")?;
    // Both ends leave at once: the switch cannot see what base and storage say.
    writeln!(links, "link add basewire type veth peer name {ADMIN_INTERFACE} netns {storage}")?;
    writeln!(links, "link set basewire netns {base}")?;
    if plan.enrolment {
        writeln!(links, "link add baseenrol type veth peer name {ENROL_INTERFACE} netns {base}")?;
        writeln!(links, "link set baseenrol master lab up")?;
    }
    for (guest, pid) in plan.guests.iter().zip(pids) {
        let Role::App { address, port } = guest.role else { continue };
        writeln!(links, "link add app{port} type veth peer name {APP_INTERFACE} netns {pid}")?;
        writeln!(links, "link set app{port} master lab up")?;
        writeln!(links, "link set dev app{port} type bridge_slave isolated on")?;
        guests.push(format!("\"app{port}\" . {address}"));
    }
    // The filter first: no moment in which a wire carries more than it may.
    run("nft", &["-f", "-"], &switch_filter(&guests)).context("cannot set up the switch's filter")?;
    run("ip", &["-batch", "-"], &links).context("cannot build the lab's network")
}

fn find(plan: &Plan, pids: &[i32], role: Role) -> Option<i32> {
    plan.guests.iter().zip(pids).find(|(guest, _)| guest.role == role).map(|(_, pid)| *pid)
}

/// Priority -200 is the bridge family's own for filters. At 0 the hooks of `br_netfilter`, where that module is loaded,
/// come first and take IP packets around the chain.
fn switch_filter(guests: &[String]) -> String {
    let elements =
        if guests.is_empty() { String::new() } else { format!("elements = {{ {} }}", guests.join(", ")) };
    format!(
        "table bridge lab {{
            set guests {{ type ifname . ipv4_addr; {elements} }}
            chain forward {{
                type filter hook forward priority -200; policy drop;
                iifname \"storage\" accept
                oifname \"storage\" iifname . ip saddr @guests ip daddr {GATEWAY_HOST} accept
                oifname \"storage\" iifname . arp saddr ip @guests arp daddr ip {GATEWAY_HOST} accept
                oifname \"baseenrol\" iifname . ip saddr @guests ip daddr {ENROL_HOST} tcp dport {ENROL_PORT} accept
                oifname \"baseenrol\" iifname . arp saddr ip @guests arp daddr ip {ENROL_HOST} accept
                iifname \"baseenrol\" oifname != \"storage\" ip saddr {ENROL_HOST} tcp sport {ENROL_PORT} accept
                iifname \"baseenrol\" oifname != \"storage\" arp saddr ip {ENROL_HOST} accept
            }}
        }}\n"
    )
}

/// Configure the network from inside a guest, once its wires are there.
pub(super) fn configure(plan: &Plan, role: Role) -> Result<()> {
    let (links, filter) = match role {
        Role::Base => (
            // `basewire` came from the switch; here it is simply the interface.
            format!(
                "link set basewire name eth0\naddr add {BASE_HOST}/24 dev eth0\nlink set eth0 up\n{}",
                match plan.enrolment {
                    true => format!(
                        "addr add {ENROL_HOST}/16 dev {ENROL_INTERFACE}\nlink set {ENROL_INTERFACE} up\n"
                    ),
                    false => String::new(),
                }
            ),
            closed_filter(plan.enrolment),
        ),
        Role::Storage => (
            format!(
                "addr add {GATEWAY_HOST}/16 dev {APP_INTERFACE}\nlink set {APP_INTERFACE} up\n\
                 addr add {ADMIN_HOST}/24 dev {ADMIN_INTERFACE}\nlink set {ADMIN_INTERFACE} up\n"
            ),
            storage_filter(&plan.open_ports),
        ),
        Role::App { address, .. } => (
            format!("addr add {address}/16 dev {APP_INTERFACE}\nlink set {APP_INTERFACE} up\n"),
            String::new(),
        ),
    };
    if !filter.is_empty() {
        run("nft", &["-f", "-"], &filter).context("cannot set up the guest's filter")?;
    }
    run("ip", &["-batch", "-"], &format!("link set lo up\n{links}"))
        .context("cannot set up the guest's network")
}

/// Stateless on purpose: neither connection tracking nor its limits are part of what is measured.
fn storage_filter(open_ports: &[u16]) -> String {
    let mut ports = GATEWAY_PORT.to_string();
    for port in open_ports {
        ports = format!("{ports}, {port}");
    }
    format!(
        "table inet lab {{
            chain input {{
                type filter hook input priority 0; policy drop;
                iifname \"lo\" accept
                iifname \"{APP_INTERFACE}\" ip daddr {GATEWAY_HOST} tcp dport {{ {ports} }} accept
                iifname \"{ADMIN_INTERFACE}\" ip saddr {BASE_HOST} ip daddr {ADMIN_HOST} tcp dport {ADMIN_PORT} accept
                meta l4proto tcp reject with tcp reset
                reject
            }}
            chain forward {{ type filter hook forward priority 0; policy drop; }}
        }}\n"
    )
}

/// The base domain calls, nobody calls it; but for fresh guests, where there is enrolment.
fn closed_filter(enrolment: bool) -> String {
    let enrol = match enrolment {
        true => format!("iifname \"{ENROL_INTERFACE}\" ip daddr {ENROL_HOST} tcp dport {ENROL_PORT} accept"),
        false => String::new(),
    };
    format!(
        "table inet lab {{
            chain input {{
                type filter hook input priority 0; policy drop;
                iifname \"lo\" accept
                ip saddr {ADMIN_HOST} tcp sport {ADMIN_PORT} accept
                {enrol}
                meta l4proto tcp reject with tcp reset
            }}
            chain forward {{ type filter hook forward priority 0; policy drop; }}
        }}\n"
    )
}

/// Run a tool with `input` on its standard input; its complaint becomes the error.
fn run(tool: &str, arguments: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(tool)
        .args(arguments)
        // An ordinary user's PATH often lacks the directories of these tools.
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{tool}`"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).with_context(|| format!("`{tool}` did not read its input"))?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("`{tool}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn app_addresses_are_distinct_and_in_the_network() {
        let all: BTreeSet<_> = (0..MAX_APPS as u16).map(app_address).collect();
        assert_eq!(all.len(), MAX_APPS);
        assert_eq!(app_address(0), Ipv4Addr::new(10, 77, 1, 1));
        for address in all {
            let [a, b, c, d] = address.octets();
            assert_eq!((a, b), (10, 77));
            assert!(c >= 1 && (1..=250).contains(&d), "{address}");
        }
    }
}
