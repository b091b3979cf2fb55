// As the documentation of `ws` has it: no compression, which is its default. It echoes; what is said at
// `/broadcast` goes to all others there.
const { WebSocketServer, WebSocket } = require('ws');
const server = new WebSocketServer({ host: '127.0.0.1', port: 0, backlog: 4096 });
const audience = new Set();
server.on('listening', () => console.log(`127.0.0.1:${server.address().port}`));
server.on('connection', (socket, request) => {
  socket.on('error', () => {});
  if (request.url !== '/broadcast') {
    socket.on('message', (data, binary) => socket.send(data, { binary }));
    return;
  }
  audience.add(socket);
  socket.on('close', () => audience.delete(socket));
  socket.on('message', (data, binary) => {
    for (const other of audience) {
      if (other !== socket && other.readyState === WebSocket.OPEN) other.send(data, { binary });
    }
  });
});
