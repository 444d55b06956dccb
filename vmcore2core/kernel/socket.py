"""Sockets as ss(8) shows them: family, type, state, addresses, queues.

References: include/linux/net.h: struct socket; include/net/sock.h: struct sock_common; include/net/inet_sock.h;
include/net/af_unix.h; net/netlink/af_netlink.h; net/ipv4/tcp_diag.c: tcp_diag_get_info() (Linux 4.18 to 7.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from socket import AF_INET, AF_INET6, inet_ntop

from vmcore2core.kernel.struct import StructView
from vmcore2core.overrides import override
from vmcore2core.printable import text

# include/linux/socket.h; those of which ss has names.
FAMILIES = {1: "unix", 2: "inet", 10: "inet6", 16: "netlink", 17: "packet", 38: "alg", 40: "vsock", 44: "xdp"}
SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET = 1, 2, 3, 5
TYPES = {
    SOCK_STREAM: "stream",
    SOCK_DGRAM: "dgram",
    SOCK_RAW: "raw",
    4: "rdm",
    SOCK_SEQPACKET: "seqpacket",
    10: "packet",
}
# include/uapi/linux/in.h
PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6", 132: "sctp", 136: "udplite", 262: "mptcp"}
UNIX_NETIDS = {SOCK_STREAM: "u_str", SOCK_DGRAM: "u_dgr", SOCK_SEQPACKET: "u_seq"}
# include/net/tcp_states.h, with ss's names
TCP_CLOSE, TCP_LISTEN = 7, 10
STATES = (
    *("UNKNOWN", "ESTAB", "SYN-SENT", "SYN-RECV", "FIN-WAIT-1", "FIN-WAIT-2", "TIME-WAIT", "UNCONN", "CLOSE-WAIT"),
    *("LAST-ACK", "LISTEN", "CLOSING"),
)
UNIX_PATH_MAX = 108
QUEUED_MAX = 1 << 12


@dataclass(frozen=True, slots=True)
class Socket:
    """One socket; None means "not known", or "not for this kind".

    Attributes:
        sock: address of ``struct sock``, 0 if it has none any more.
        netid: ss's word for family, type and protocol: "tcp", "u_str".
        family, type, protocol: by name, or the number if there is no name here.
        state: ss's word.
        local, peer: addresses; of a unix socket, its name, "@" first where it is abstract.
        recv_q, send_q: bytes that the process has not read, and bytes that the other side has not acknowledged. For a
            listening socket: connections to be accepted, and the limit of these.
        net: address of the ``struct net`` that it belongs to.
        net_inode: number of the network namespace, as in /proc/PID/ns/net.
        peer_sock: address of the other end's ``struct sock``, of a unix socket.
    """

    sock: int
    netid: str
    family: str
    type: str
    protocol: int | None = None
    state: str | None = None
    local: str | None = None
    peer: str | None = None
    recv_q: int | None = None
    send_q: int | None = None
    net: int | None = None
    net_inode: int | None = None
    peer_sock: int | None = None

    @override
    def __str__(self) -> str:
        """Return it in a line, like ``ss -a``, without unknown values."""
        queues = (
            "" if self.recv_q is None else f"recv-q {self.recv_q} send-q {'?' if self.send_q is None else self.send_q}"
        )
        ends = (self.local or "*", self.peer or "*") if self.local or self.peer else ()
        return " ".join(word for word in (self.netid, self.state or "", queues, *ends) if word)


def socket_of(file: StructView) -> Socket | None:
    """Return the socket of a file; None if it is not a socket any more.

    Args:
        file: ``struct file`` of a socket.

    Raises:
        MemoryFault, CorruptStructure: it cannot be read.
        LayoutUnknown: a member of it is not known.
    """
    socket = file.follow("private_data", "socket")
    if socket is None:
        return None
    kind = socket.uint("type", size=2)
    word = TYPES.get(kind, str(kind))
    sk = socket.follow("sk", "sock")
    if sk is None:
        return Socket(0, "???", "???", word)
    family = sk.uint("__sk_common.skc_family", size=2)
    protocol = sk.find_uint("sk_protocol", 2)
    net = sk.pointer("__sk_common.skc_net.net") if sk.has("__sk_common.skc_net.net") else None
    found = Socket(
        sock=sk.address,
        netid=_netid(family, kind, protocol),
        family=FAMILIES.get(family, str(family)),
        type=word,
        protocol=protocol,
        net=net,
        net_inode=sk.kernel.view("net", net).find_uint("ns.inum", 4) if net else None,
    )
    reader = {1: _unix, 2: _inet, 10: _inet, 16: _netlink}.get(family)
    return found if reader is None else reader(sk, kind, found)


def _netid(family: int, kind: int, protocol: int | None) -> str:
    if family in (2, 10):
        return "raw" if kind == SOCK_RAW else PROTOCOLS.get(protocol or 0, "???")
    if family == 1:
        return UNIX_NETIDS.get(kind, "???")
    words = {16: "nl", 17: "p_raw" if kind == SOCK_RAW else "p_dgr", 40: "v_str" if kind == SOCK_STREAM else "v_dgr"}
    return words.get(family, "???")


def _state(sk: StructView) -> int:
    return sk.uint("__sk_common.skc_state", size=1)


def _state_name(state: int) -> str:
    return STATES[state] if state < len(STATES) else str(state)


def _inet(sk: StructView, kind: int, found: Socket) -> Socket:
    state = _state(sk)
    port = sk.uint("__sk_common.skc_num", size=2)
    raw = sk.bytes_of("__sk_common.skc_dport", 2)
    recv_q, send_q = _inet_queues(sk, kind, state, found.netid)
    return replace(
        found,
        state=_state_name(state),
        local=_address(sk, "rcv_saddr", port),
        peer=_address(sk, "daddr", int.from_bytes(raw, "big")),
        recv_q=recv_q,
        send_q=send_q,
    )


def _address(sk: StructView, name: str, port: int) -> str:
    number = port or "*"
    if sk.uint("__sk_common.skc_family", size=2) == int(AF_INET6) and sk.has(f"__sk_common.skc_v6_{name}"):
        return f"[{inet_ntop(AF_INET6, sk.bytes_of(f'__sk_common.skc_v6_{name}', 16))}]:{number}"
    return f"{inet_ntop(AF_INET, sk.bytes_of(f'__sk_common.skc_{name}', 4))}:{number}"


def _inet_queues(sk: StructView, kind: int, state: int, netid: str) -> tuple[int | None, int | None]:
    if kind == SOCK_STREAM and state == TCP_LISTEN:
        return sk.find_uint("sk_ack_backlog", 4), sk.find_uint("sk_max_ack_backlog", 4)
    if netid == "tcp":
        tcp = sk.kernel.view("tcp_sock", sk.address)
        names = ("rcv_nxt", "copied_seq", "write_seq", "snd_una")
        rcv_nxt, copied, written, una = (tcp.find_uint(name, 4) for name in names)
        if None in (rcv_nxt, copied, written, una) or state == TCP_CLOSE:
            return None, None
        # tcp_inq(): FIN takes a number, too; sequence numbers wrap.
        received = _after(rcv_nxt, copied)
        return max(received - (received > 0 and _was_shut(sk)), 0), _after(written, una)
    return _memory(sk, "sk_backlog.rmem_alloc"), _memory(sk, "sk_wmem_alloc", 1)


def _after(end: int | None, start: int | None) -> int:
    return ((end or 0) - (start or 0)) & 0xFFFF_FFFF


def _was_shut(sk: StructView) -> bool:
    """Tell whether the other side has ended: sock_flag(sk, SOCK_DONE)."""
    flags = sk.find_uint("__sk_common.skc_flags", 8)
    done = sk.kernel.layout.find_constant("SOCK_DONE")
    return flags is not None and done is not None and 0 <= done < 64 and bool(flags >> done & 1)


def _memory(sk: StructView, name: str, less: int = 0) -> int | None:
    value = sk.find_uint(name, 4)
    return None if value is None else max(value - less, 0)


def _unix(sk: StructView, kind: int, found: Socket) -> Socket:
    unix, state = sk.kernel.view("unix_sock", sk.address), _state(sk)
    peer = unix.follow("peer", "unix_sock") if unix.has("peer") else None
    listens = state == TCP_LISTEN
    return replace(
        found,
        # unix_diag shows a datagram socket as not connected, in every state.
        state=_state_name(state),
        local=_unix_name(unix),
        peer=_unix_name(peer) if peer is not None else None,
        recv_q=sk.find_uint("sk_receive_queue.qlen", 4) if listens else _queued(sk, kind),
        send_q=sk.find_uint("sk_max_ack_backlog", 4) if listens else _memory(sk, "sk_wmem_alloc", 1),
        peer_sock=None if peer is None else int(peer.address),
    )


def _unix_name(unix: StructView) -> str | None:
    """Return the name a unix socket is bound to; None for none."""
    address = unix.follow("addr", "unix_address") if unix.has("addr") else None
    if address is None:
        return None
    # struct sockaddr_un {sun_family, sun_path}
    length, at = address.sint("len", size=4) - 2, address.addr_of("name") + 2
    if not 0 < length <= UNIX_PATH_MAX:
        return None
    raw = address.kernel.memory.read(at, length)
    if raw[:1] == b"\0":
        return "@" + text(raw[1:].replace(b"\0", b"@"))
    return text(raw.split(b"\0", 1)[0])


def _queued(sk: StructView, kind: int) -> int | None:
    """Return the bytes that can be read, like unix_inq_len(); of datagrams, those of the first one."""
    if not sk.has("sk_receive_queue") or sk.kernel.layout.find_member("sk_buff", "len") is None:
        return None
    head = sk.addr_of("sk_receive_queue")
    limit = 1 if kind == SOCK_DGRAM else QUEUED_MAX
    return sum(skb.uint("len", size=4) for skb in islice(_skbs(sk, head), limit))


def _skbs(sk: StructView, head: int) -> Iterator[StructView]:
    """Yield the ``struct sk_buff`` of a queue: next and prev come first, in ``struct sk_buff_head`` as well."""
    kernel, at, last = sk.kernel, sk.kernel.read_pointer(head), head
    while at != head:
        skb = kernel.view("sk_buff", at)
        if kernel.read_pointer(at + kernel.arch.pointer_size) != last:
            raise skb.corrupt("prev", f"does not point back to {last:#x}")
        yield skb
        last, at = at, kernel.read_pointer(at)


def _netlink(sk: StructView, _: int, found: Socket) -> Socket:
    nlk = sk.kernel.view("netlink_sock", sk.address)
    portid, to = nlk.find_uint("portid", 4), nlk.find_uint("dst_portid", 4)
    return replace(
        found,
        state="UNCONN",
        local=None if portid is None else f"{found.protocol}:{portid}",
        peer="*" if to == 0 else None if to is None else str(to),
        recv_q=_memory(sk, "sk_backlog.rmem_alloc"),
        send_q=_memory(sk, "sk_wmem_alloc", 1),
    )
