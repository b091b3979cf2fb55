// WebSocket alone, and no pings while it is measured. An event `m` goes to all others.
const http = require('http');
const { Server } = require('socket.io');
const listener = http.createServer();
const server = new Server(listener, { transports: ['websocket'], serveClient: false, pingInterval: 86400000 });
server.on('connection', (socket) => socket.on('m', (data) => socket.broadcast.emit('m', data)));
listener.listen({ host: '127.0.0.1', port: 0, backlog: 4096 }, () =>
  console.log(`127.0.0.1:${listener.address().port}`));
