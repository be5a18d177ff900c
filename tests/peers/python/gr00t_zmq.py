"""ZeroMQ REQ/REP with MessagePack, as GR00T serves its policies: arrays travel as npy files inside a map.

GR00T's server and client are not in a package; both do here what theirs do per request: the endpoint by name, observation and
options in, (action, info) out, `numpy.save` and `numpy.load` around every array. Left out is what theirs prints per request.
"""
import io

import msgpack
import numpy as np
import zmq


def encode(value):
    if isinstance(value, np.ndarray):
        file = io.BytesIO()
        np.save(file, value, allow_pickle=False)
        return {"__ndarray_class__": True, "as_npy": file.getvalue()}
    return value


def decode(value):
    if "__ndarray_class__" in value:
        return np.load(io.BytesIO(value["as_npy"]), allow_pickle=False)
    return value


def pack(value) -> bytes:
    return msgpack.packb(value, default=encode)


def unpack(data: bytes):
    return msgpack.unpackb(data, object_hook=decode)


def serve(policy, ready, _variant) -> None:
    def get_action(observation, options):
        return {"action": policy(observation["observation"])}, {}

    endpoints = {"get_action": get_action}
    socket = zmq.Context().socket(zmq.REP)
    socket.bind("tcp://127.0.0.1:*")
    ready(socket.getsockopt_string(zmq.LAST_ENDPOINT))
    while True:
        request = unpack(socket.recv())
        result = endpoints[request.get("endpoint", "get_action")](**request.get("data", {}))
        socket.send(pack(result))


class Client:
    def __init__(self, address: str) -> None:
        self.socket = zmq.Context().socket(zmq.REQ)
        self.socket.connect(address)

    def infer(self, observation):
        self.socket.send(pack({"endpoint": "get_action", "data": {"observation": {"observation": observation}, "options": None}}))
        action, _info = unpack(self.socket.recv())
        return action["action"]
