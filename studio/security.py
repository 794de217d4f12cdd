"""Who may talk to the studio: a person who has the address with its token, from the studio's own page."""

import hmac
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Lets a request through if its Host is one of `hosts`, its Origin (if any) is the same host, and it has the token in a
    cookie. The address /?token=TOKEN sets the cookie. A request that changes something needs an Origin: a browser sends it."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...], token: str, cookie: str):
        self.app, self.hosts, self.token, self.cookie = app, hosts, token, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 403 for another host or origin, 401 without the token."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = MutableHeaders(raw=list(message["headers"]))
                for name, value in HEADERS.items():
                    own.setdefault(name, value)
                message["headers"] = own.raw
            await send(message)

        answer = self._refused(scope) or self._entrance(scope) or self.app
        await answer(scope, receive, send_with_headers)

    def _refused(self, scope: Scope) -> ASGIApp | None:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if headers.get("host", "").lower() not in self.hosts:
            return PlainTextResponse("unknown host: use the address that the studio printed", 403)
        if origin is None and scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("a request without Origin may not change anything", 403)
        if origin is not None and origin not in {f"http://{host}" for host in self.hosts}:
            return PlainTextResponse("requests of another page are refused", 403)
        return None

    def _entrance(self, scope: Scope) -> ASGIApp | None:
        """Returns the answer to the address with the token, or to a request without it; None for a request with the cookie."""
        cookies = dict(part.strip().partition("=")[::2] for part in Headers(scope=scope).get("cookie", "").split(";"))
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if hmac.compare_digest(cookies.get(self.cookie, "").encode(), self.token.encode()) and not given:
            return None
        if scope["path"] == "/" and hmac.compare_digest(given.encode(), self.token.encode()):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(
                self.cookie, self.token, httponly=True, samesite="lax"
            )  # strict would refuse a click in a web terminal
            return answer
        return PlainTextResponse("open the address that the studio printed: it holds a token", 401)
