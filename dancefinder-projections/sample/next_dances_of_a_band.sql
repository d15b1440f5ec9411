SELECT to_char(e.date, 'Dy DD Mon') AS day, h.name AS hall, h.city, h.state AS county
FROM event e
JOIN band b ON b.id = e.band_id
JOIN dance_hall h ON h.id = e.dance_hall_id
WHERE b.name = 'Gryningståget'
  AND e.date > (SELECT MAX(recorded_at)::date FROM events)
ORDER BY e.date
LIMIT 5;
