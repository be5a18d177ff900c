"""HTTP with pickled NumPy on Flask, the way of small policy servers: POST /infer, pickle in, pickle out.

`werkzeug` is what `app.run()` serves with, and what such servers are found with: HTTP/1.0, a connection and a thread for each
request. `waitress` is the server that Flask's documentation names for production: HTTP/1.1, connections are kept.
Unpickling what a client sent runs whatever the client likes; that is the peer's way, and why its server listens on
127.0.0.1 only, for the time of a row. The client is `requests` with a session of its own.
"""
import logging
import pickle

import requests
from flask import Flask, Response, request


def serve(policy, ready, variant: str) -> None:
    app = Flask("policy")

    @app.route("/infer", methods=["POST"])
    def infer() -> Response:
        action = policy(pickle.loads(request.get_data()))
        return Response(pickle.dumps(action), mimetype="application/octet-stream")

    # A line per request on the console is not the transport's cost.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    if variant == "werkzeug":
        from werkzeug.serving import make_server

        server = make_server("127.0.0.1", 0, app, threaded=True)
        ready(f"127.0.0.1:{server.server_port}")
        server.serve_forever()
    else:
        from waitress.server import create_server

        server = create_server(app, host="127.0.0.1", port=0)
        ready(f"127.0.0.1:{server.effective_port}")
        server.run()


class Client:
    def __init__(self, address: str) -> None:
        self.url = f"http://{address}/infer"
        self.session = requests.Session()
        # A proxy of the environment has no part in this.
        self.session.trust_env = False

    def infer(self, observation):
        reply = self.session.post(self.url, data=pickle.dumps(observation))
        reply.raise_for_status()
        return pickle.loads(reply.content)
